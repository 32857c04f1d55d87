#!/usr/bin/env bash
# Runs the training on a GKE cluster with XPK, which restarts it after a preemption.
#   CLUSTER=mine IMAGE=REGION-docker.pkg.dev/PROJECT/REPO/sdjax tpu/xpk.sh [--dry-run]
# IMAGE holds this repository in its working directory, installed with its tpu extra. The cluster's
# GCS FUSE driver mounts the bucket. Without XPK, apply jobset.yaml instead.
source "$(dirname "$0")/common.sh" "$@"

: "${CLUSTER:=my-cluster}" "${IMAGE:=my-image}"
TOOL=xpk check_settings PROJECT BUCKET CLUSTER IMAGE
run xpk workload create --project "$PROJECT" --zone "$ZONE" --cluster "$CLUSTER" \
  --workload "$NAME" --tpu-type "$TYPE" --docker-image "$IMAGE" --max-restarts "$TRIES" \
  --command "python -m sdjax.main --config $CONFIG --out /bucket/$RUN --resume $ARGS"
