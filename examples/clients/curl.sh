#!/usr/bin/env bash
# Ask a served model with curl: ./curl.sh URL MODEL
#   fairlead serve start baseline --name digits --http-port 8080 &
#   ./curl.sh http://127.0.0.1:8080 digits
# A server that asks for credentials gets the key in FAIRLEAD_API_KEY.
set -euo pipefail
url=$1 model=$2
key=(${FAIRLEAD_API_KEY:+-H "X-API-Key: $FAIRLEAD_API_KEY"})
ask() { curl --silent --show-error --fail-with-body --max-time 10 "${key[@]}" "$@" && echo; }

ask "$url/v2/health/ready" --output /dev/null --write-out 'ready: %{http_code}\n'
metadata=$(ask "$url/v2/models/$model")
echo "metadata: $metadata"

# One row of zeros, as JSON of the Open Inference Protocol.
name=$(sed -E 's/.*"inputs": ?\[\{"name": ?"([^"]+)".*/\1/' <<<"$metadata")
width=$(sed -E 's/.*"inputs": ?\[[^]]*"shape": ?\[-1, ?([0-9]+)\].*/\1/' <<<"$metadata")
zeros=$(printf '0,%.0s' $(seq "$width"))
body="{\"inputs\":[{\"name\":\"$name\",\"shape\":[1,$width],\"datatype\":\"FP32\",\"data\":[${zeros%,}]}]}"
printf 'JSON: '
ask "$url/v2/models/$model/infer" --json "$body" -H 'X-Request-Timeout-Ms: 5000'

# The same row as bytes: a JSON head, then the tensor, little-endian and row-major.
head="{\"inputs\":[{\"name\":\"$name\",\"shape\":[1,$width],\"datatype\":\"FP32\","
head+="\"parameters\":{\"binary_data_size\":$((4 * width))}}]}"
printf 'binary: '
{ printf '%s' "$head"; head -c $((4 * width)) /dev/zero; } |
  ask "$url/v2/models/$model/infer" --data-binary @- \
    -H 'Content-Type: application/octet-stream' -H "Inference-Header-Content-Length: ${#head}"
