"""The signs and codes that stand before an amount of money, such as US$ and CHF."""

from __future__ import annotations

CODES = (
    *("USD", "EUR", "GBP", "CHF", "JPY", "CNY", "INR", "CAD", "AUD", "NZD", "SGD", "HKD"),
    *("KRW", "SEK", "NOK", "DKK", "BRL", "MXN", "ZAR", "PLN", "TRY", "RUB"),
)
"""Codes of ISO 4217."""
DOLLARS = ("US", "AU", "CA", "NZ", "HK", "A", "C", "R", "S")
"""Letters that stand before a dollar sign."""
SIGNS = "£¥฿" + "".join(map(chr, range(0x20A0, 0x20C1)))
"""All signs but the dollar's, among them € and ₹."""
