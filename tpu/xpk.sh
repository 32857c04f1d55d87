#!/usr/bin/env bash
# The same training on a GKE cluster with XPK, which restarts it after a preemption.
#   CLUSTER=mine IMAGE=REGION-docker.pkg.dev/PROJECT/REPO/sdjax tpu/xpk.sh [--dry-run]
# IMAGE holds this repository, installed with its tpu extra, in its working directory; jobset.yaml
# is what to apply without XPK. The bucket is mounted by the cluster's GCS FUSE driver.
source "$(dirname "$0")/common.sh" "$@"

: "${CLUSTER:=my-cluster}" "${IMAGE:=my-image}"
run xpk workload create --project "$PROJECT" --zone "$ZONE" --cluster "$CLUSTER" \
  --workload "$NAME" --tpu-type "$TYPE" --docker-image "$IMAGE" --max-restarts "$TRIES" \
  --command "python -m sdjax.main --config $CONFIG --out /bucket/$RUN --resume $ARGS"
