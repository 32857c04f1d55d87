"""Lets a test call a program that runs in another process. This text runs only in the sandbox.

The test's process sees functions, classes and objects of the program as `Remote`. Plain data
crosses as copies, so that no object of the program can decide a comparison with plain data. Each
message is one line of JSON. A message is a request [operation, ...] or the reply to the last one
that is open: ["value", value, arguments] or ["raised", type, text, report].
"""

import collections
import datetime
import decimal
import fractions
import importlib
import json
import operator
import os
import sys
import traceback
import types

FILE = "Solution.py"
LIMIT = 10**7
"""Characters of the longest message."""
VALUES = {
    "complex": (complex, lambda v: [v.real, v.imag]),
    "Fraction": (fractions.Fraction, lambda v: [v.numerator, v.denominator]),
    "Decimal": (decimal.Decimal, lambda v: [str(v)]),
    "datetime": (datetime.datetime, lambda v: [*v.timetuple()[:6], v.microsecond]),
    "date": (datetime.date, lambda v: [v.year, v.month, v.day]),
    "timedelta": (datetime.timedelta, lambda v: [v.days, v.seconds, v.microseconds]),
    "range": (range, lambda v: [v.start, v.stop, v.step]),
}
SEQUENCES = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": collections.deque,
    "bytes": bytes,
    "bytearray": bytearray,
}


class Ended(Exception):
    """The program's process ended."""


class Remote:
    """An object of the other process. Its operations run there."""

    def __init__(self, peer, number):
        self.__dict__.update(_peer=peer, _number=number)

    def __call__(self, *args, **kwargs):
        """Calls the object, and changes lists, dicts and sets among `args` as the call did."""
        return self._peer.call(self._number, "__call__", args, kwargs)

    def __getattr__(self, name):
        return self._peer.ask("get", self._number, name)

    def __setattr__(self, name, value):
        self._peer.ask("set", self._number, name, self._peer.pack(value))

    def __eq__(self, other):
        # Plain data is never equal to an object of the program, whatever the object says.
        if self is other:
            return True
        return (
            isinstance(other, Remote) and self._peer.call(self._number, "__eq__", (other,)) is True
        )

    __hash__ = object.__hash__

    def __instancecheck__(self, value):
        return isinstance(value, Remote) and self._peer.ask(
            "isinstance", value._number, self._number
        )


# What an operation on a Remote does with the object. Each takes the object first.
OPERATIONS = {
    "__len__": len,
    "__iter__": iter,
    "__next__": next,
    "__str__": str,
    "__repr__": repr,
    "__bool__": bool,
    "__radd__": lambda held, other: other + held,
    "__rsub__": lambda held, other: other - held,
    "__rmul__": lambda held, other: other * held,
    "__call__": lambda held, *args, **kwargs: held(*args, **kwargs),
} | {
    f"__{name}__": getattr(operator, f"__{name}__")
    for name in (
        "eq lt le gt ge getitem setitem delitem contains add sub mul truediv floordiv mod pow neg "
        "abs"
    ).split()
}


def _forward(name):
    def method(self, *args):
        return self._peer.call(self._number, name, args)

    return method


for _name in OPERATIONS.keys() - {"__call__", "__eq__"}:
    setattr(Remote, _name, _forward(_name))


class Peer:
    """One end of the connection between a program and its test."""

    def __init__(self, read, write, offers):
        self.read, self.write, self.offers = read, write, offers
        self.objects, self.errors = [], {}

    def ask(self, *request):
        """Returns the other side's reply to a request; serves its requests until then."""
        self._send(list(request))
        while True:
            kind, *rest = self._receive()
            if kind == "value":
                return self.unpack(rest[0])
            if kind == "raised":
                raise self._error(*rest)
            self._answer(kind, rest)

    def call(self, number, name, args, kwargs=None):
        """Returns the result of a method; copies back what the call changed in its arguments."""
        value, after = self.ask(
            "call", number, name, [self.pack(a) for a in args], self.pack(dict(kwargs or {}))
        )
        for given, changed in zip(args, after, strict=True):
            if type(given) is type(changed) and isinstance(given, (list, bytearray)):
                given[:] = changed
            elif type(given) is type(changed) and isinstance(given, (dict, set)):
                given.clear()
                given.update(changed)
        return value

    def serve(self):
        """Answers requests until the other side ends."""
        try:
            while True:
                kind, *rest = self._receive()
                self._answer(kind, rest)
        except Ended:
            pass

    def _answer(self, kind, rest):
        try:
            reply = ["value", self.pack(getattr(self, f"_on_{kind}")(*rest))]
        except Ended:
            raise
        except BaseException as error:
            reply = ["raised", type(error).__name__, str(error)[:2000], described(error)]
        self._send(reply)

    def _on_call(self, number, name, args, kwargs):
        held, given = self.objects[number], [self.unpack(a) for a in args]
        if not self.offers and name != "__call__":
            raise TypeError("a test's function can only be called")
        value = OPERATIONS[name](held, *given, **self.unpack(kwargs))
        return value, [a if isinstance(a, (list, dict, set, bytearray)) else None for a in given]

    def _on_get(self, number, name):
        return getattr(self._offered(number), name)

    def _on_set(self, number, name, value):
        setattr(self._offered(number), name, self.unpack(value))

    def _on_isinstance(self, value, kind):
        return isinstance(self._offered(value), self._offered(kind))

    def _on_names(self):
        hidden = ("__builtins__", "__name__")
        return {k: v for k, v in self._offered(0).items() if k not in hidden}

    def _offered(self, number):
        if not self.offers:
            raise TypeError("a test's function can only be called")
        return self.objects[number]

    def pack(self, value):
        """Returns the JSON form of a value: data as a copy, all else as a number of an object."""
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if isinstance(value, bool | int | float | str):
            base = next(b for b in (int, float, str) if isinstance(value, b))
            plain = str.__str__(value) if base is str else base.__pos__(value)
            return plain if base is str else {"n": base.__repr__(plain)}
        if isinstance(value, list):
            return [self.pack(v) for v in list.__iter__(value)]
        if isinstance(value, dict):
            return {"d": [[self.pack(k), self.pack(v)] for k, v in dict.items(value)]}
        for name, base in SEQUENCES.items():
            if isinstance(value, base):
                return {"s": name, "v": [self.pack(v) for v in base.__iter__(value)]}
        for name, (base, parts) in VALUES.items():
            if kind is base:
                return {"v": name, "a": [self.pack(p) for p in parts(value)]}
        return self._reference(value)

    def _reference(self, value):
        if isinstance(value, Remote):
            return {"own": value._number}
        if isinstance(value, types.ModuleType):
            return {"m": value.__name__}
        if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
            return {"np": self.pack(value.tolist()), "t": str(value.dtype)}
        if isinstance(value, type) and issubclass(value, BaseException):
            return {"e": value.__name__}
        self.objects.append(value)
        return {"o": len(self.objects) - 1}

    def unpack(self, form):
        """Returns the value of a JSON form."""
        if isinstance(form, list):
            return [self.unpack(f) for f in form]
        if not isinstance(form, dict):
            return form
        if "n" in form:
            text = form["n"]
            return int(text) if text.lstrip("-").isdigit() else float(text)
        if "d" in form:
            return {self.unpack(k): self.unpack(v) for k, v in form["d"]}
        if "s" in form:
            return SEQUENCES[form["s"]](self.unpack(form["v"]))
        if "v" in form:
            return VALUES[form["v"]][0](*self.unpack(form["a"]))
        if "np" in form:
            return importlib.import_module("numpy").array(self.unpack(form["np"]), form["t"])
        if "m" in form:
            known = form["m"].split(".")[0] in {*sys.stdlib_module_names, "numpy"}
            return importlib.import_module(form["m"]) if known else None
        if "e" in form:
            return self._exception(form["e"])
        return self.objects[form["own"]] if "own" in form else Remote(self, form["o"])

    def _exception(self, name):
        known = getattr(sys.modules["builtins"], name, None)
        if isinstance(known, type) and issubclass(known, BaseException):
            return known
        return self.errors.setdefault(name, type(name, (Exception,), {}))

    def _error(self, name, text, report):
        error = self._exception(name)(text)
        error.report = [str(line) for line in report][:4]
        return error

    def _send(self, message):
        self.write.write(json.dumps(message) + "\n")
        self.write.flush()

    def _receive(self):
        line = self.read.readline(LIMIT)
        try:
            message = json.loads(line) if line.endswith("\n") else None
        except ValueError:
            message = None
        if not isinstance(message, list) or not message:
            raise Ended
        return message


def described(error):
    """Returns an exception's message and its last three frames in the program."""
    if hasattr(error, "report"):
        return error.report
    if isinstance(error, MemoryError):
        # The frames hold what filled the memory, so nothing else can run until they are gone.
        error.__traceback__ = None
        return ["MemoryError: "]
    frames = [
        f"Line {frame.lineno} in {frame.name} ({FILE})"
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == FILE
    ]
    return [f"{type(error).__name__}: {error}"[:2000], *frames[-3:]]


def open_channel(fd):
    """Returns text streams that read from and write to a socket."""
    sys.set_int_max_str_digits(0)
    return os.fdopen(fd, "r", encoding="ascii"), os.fdopen(os.dup(fd), "w", encoding="ascii")


def serve_program(read, write):
    """Runs the program that the first line of `read` holds, then answers its test's requests."""
    source = json.loads(read.readline())
    names = {"__name__": "solution"}
    peer = Peer(read, write, offers=True)
    peer.objects.append(names)
    try:
        exec(compile(source, FILE, "exec"), names)
        peer._send(["value", None])
    except BaseException as error:
        peer._send(["raised", type(error).__name__, str(error)[:2000], described(error)])
        return
    peer.serve()


def run_test(read, write, source, test):
    """Runs a test's assertions on the program at the other end; returns the report."""
    peer = Peer(read, write, offers=False)
    try:
        write.write(json.dumps(source) + "\n")
        write.flush()
        kind, *rest = peer._receive()
        if kind != "value":
            return {"error": [str(line) for line in rest[2]]}
        names = {"__name__": "test"}
        names.update(peer.ask("names"))
        exec(compile(test, "test", "exec"), names)
        return {}
    except Ended:
        return {"died": 0}
    except BaseException as error:
        return {"error": described(error)}
