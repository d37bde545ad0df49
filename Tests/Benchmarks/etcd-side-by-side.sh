#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Aspen and etcd 3.4 (Debian), three nodes each on loopback, loaded in turns (A B A B …) because one
# machine drifts by more than most differences; prints medians and ratios.
#
#   ROUNDS=3        turns of each side for each line
#   CLIENTS="1 64"  one connection a client on both sides, spread over all three nodes
#   VIA=socket      how Aspen's clients come: socket (raft.sock) or ticket (QUIC, encrypted)
#   SCALE=1         multiplies the number of requests
#   ASPEN_BIN_DIR   programs already built (release!); default: builds them
#
# etcd's load is made by etcd's own tools/benchmark, built from Debian's source package against
# Debian's Go packages; nothing outside $CACHE and a temporary directory is written.
set -euo pipefail
cd "$(dirname "$0")/../.."

rounds=${ROUNDS:-3}
clients=${CLIENTS:-1 64}
via=${VIA:-socket}
scale=${SCALE:-1}
cache=${CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/aspen/etcd-benchmark}
value=256
keys=10000

need=(etcd-server golang-go golang-etcd-server-dev golang-gopkg-cheggaaa-pb.v1-dev
    golang-github-spf13-cobra-dev golang-github-bgentry-speakeasy-dev
    golang-github-dustin-go-humanize-dev golang-golang-x-time-dev)
missing=()
for package in "${need[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
        missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "The comparison needs these Debian packages:" >&2
    echo "    apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
fi

# The -dev package leaves tools/ out, the source package has it. deb-src lists of our own, so that
# the machine's stay as they are.
build_etcd_benchmark() {
    local work=$cache/build
    rm -rf "$work" && mkdir -p "$work/lists/partial" "$work/go/src/go.etcd.io/etcd"
    if [ -f /etc/apt/sources.list.d/debian.sources ]; then
        sed 's/^Types:.*/Types: deb-src/' /etc/apt/sources.list.d/debian.sources \
            >"$work/src.sources"
    else
        sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >"$work/src.list"
    fi
    local source
    source=$(echo "$work"/src.*)
    local apt=(apt-get -q -o "Dir::Etc::sourcelist=$source" -o Dir::Etc::sourceparts=-
        -o "Dir::State::lists=$work/lists" -o APT::Sandbox::User=)
    (cd "$work" && "${apt[@]}" update && "${apt[@]}" source --download-only etcd) >&2
    tar xzf "$work"/etcd_*.orig.tar.gz --strip-components=1 --wildcards \
        -C "$work/go/src/go.etcd.io/etcd" 'etcd-*/tools/benchmark/*'
    GO111MODULE=off GOFLAGS= GOPATH="$work/go:/usr/share/gocode" GOCACHE="$work/cache" \
        go build -o "$cache/benchmark" go.etcd.io/etcd/tools/benchmark
    rm -rf "$work"
}
mkdir -p "$cache"
[ -x "$cache/benchmark" ] || {
    echo "Building etcd's benchmark in $cache …" >&2
    build_etcd_benchmark
}

if [ -z "${ASPEN_BIN_DIR:-}" ]; then
    scripts/bootstrap
    for program in aspend-net aspend-raft aspen-node aspen-cli aspen-bench; do
        swift build -c release --product "$program" >&2
    done
    ASPEN_BIN_DIR=$(swift build -c release --show-bin-path)
fi
export ASPEN_BIN_DIR
export PATH="$ASPEN_BIN_DIR:$PATH"

work=$(mktemp -d "${TMPDIR:-/tmp}/aspen-versus-XXXXXX")
pids=()
clean_up() {
    trap - EXIT INT TERM
    [ ${#pids[@]} = 0 ] || kill -TERM "${pids[@]}" 2>/dev/null || true
    wait || true
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# --- etcd: plain HTTP, its defaults
free_port() { # three for peers, three for clients
    ! grep -qi "$(printf ':%04X ' "$1")" /proc/net/tcp /proc/net/tcp6
}
base=23790
while :; do
    ok=1
    for k in 1 2 3; do free_port $((base + k)) && free_port $((base + 10 + k)) || ok=0; done
    [ "$ok" = 1 ] && break
    base=$((base + 20))
done
initial=""
endpoints=""
for k in 1 2 3; do
    initial+="${initial:+,}n$k=http://127.0.0.1:$((base + 10 + k))"
    endpoints+="${endpoints:+,}127.0.0.1:$((base + k))"
done
for k in 1 2 3; do
    etcd --name "n$k" --data-dir "$work/etcd-$k" --log-level error \
        --listen-client-urls "http://127.0.0.1:$((base + k))" \
        --advertise-client-urls "http://127.0.0.1:$((base + k))" \
        --listen-peer-urls "http://127.0.0.1:$((base + 10 + k))" \
        --initial-advertise-peer-urls "http://127.0.0.1:$((base + 10 + k))" \
        --initial-cluster "$initial" --initial-cluster-state new \
        --initial-cluster-token "aspen-versus-$$" >"$work/etcd-$k.log" 2>&1 &
    pids+=($!)
done
etcd_load() { "$cache/benchmark" --endpoints "$endpoints" --conns "$1" --clients "$1" "${@:2}" 2>&1; }
for ((tries = 0; tries < 100; tries++)); do
    etcd_load 1 put --total 1 >/dev/null 2>&1 && break
    sleep 0.1
done

# --- Aspen: as `make cluster` starts it
scripts/cluster 3 "$work/aspen" >"$work/aspen.out" 2>"$work/aspen.err" &
pids+=($!)
for ((tries = 0; tries < 300; tries++)); do
    grep -qs 'Ctrl-C stops it' "$work/aspen.out" && break
    kill -0 "${pids[3]}" 2>/dev/null || { cat "$work/aspen.err" >&2 && exit 1; }
    sleep 0.1
done
case "$via" in
socket)
    target=()
    for k in 1 2 3; do target+=(--socket "$work/aspen/$k/run/raft.sock"); done
    ;;
ticket) target=(--ticket "$(aspen-cli --socket "$work/aspen/1/run/raft.sock" cluster ticket)") ;;
*) echo "VIA is socket or ticket, not '$via'" >&2 && exit 2 ;;
esac

# --- One turn each; a line of "side operation clients rate p50 p99", times in ms
etcd_turn() { # operation clients total
    local text
    case "$1" in
    put) text=$(etcd_load "$2" put --total "$3" --key-size 32 --val-size "$value" \
        --key-space-size "$keys") ;;
    get) text=$(etcd_load "$2" range "$probe" --consistency l --total "$3") ;;
    esac
    awk -v side=etcd -v op="$1" -v n="$2" '
        /Requests\/sec:/ { rate = $2 } /50% in/ { p50 = $3 * 1000 } /99% in/ { p99 = $3 * 1000 }
        END { if (!rate) exit 1; print side, op, n, rate, p50, p99 }' <<<"$text" || {
        echo "$text" >&2
        exit 1
    }
}
aspen_turn() {
    local more=() json
    # etcd's benchmark reads one key again and again; so does Aspen's, here.
    case "$1" in put) more=(--keys "$keys") ;; get) more=(--keys 1) ;; esac
    json=$(aspen-bench "$1" "${target[@]}" --clients "$2" --connections "$2" --count "$3" \
        --warmup 1ms --key-size 32 --value-size "$value" "${more[@]}" --json)
    case "$json" in *'"errors":{},"wrong":0'*) ;; *) echo "aspen-bench: $json" >&2 && exit 1 ;; esac
    sed -E 's/.*"rate_per_second":([0-9.]+).*"p50":([0-9.]+).*"p99":([0-9.]+).*/\1 \2 \3/' \
        <<<"$json" | sed "s/^/aspen $1 $2 /"
}
probe=$(printf '%032d' 7)
command -v etcdctl >/dev/null &&
    ETCDCTL_API=3 etcdctl --endpoints "$endpoints" put "$probe" "$(printf '%0256d' 7)" >/dev/null

total_for() { # about four seconds of etcd's rate
    local total=$((($1 == 1 ? 8000 : $1 < 32 ? 24000 : 48000) * scale))
    [ "$2" = get ] && total=$((total * 2))
    echo "$total"
}
for operation in put get; do
    for n in $clients; do
        total=$(total_for "$n" "$operation")
        for round in $(seq 0 "$rounds"); do
            echo "$operation, $n clients, round $round of $rounds" >&2
            out=$work/results
            [ "$round" = 0 ] && out=/dev/null # a turn to warm up
            etcd_turn "$operation" "$n" "$total" >>"$out"
            aspen_turn "$operation" "$n" "$total" >>"$out"
        done
    done
done

echo "Aspen (via $via) beside etcd $(etcd --version | sed -n 's/etcd Version: //p'), 3 nodes each on one machine,"
echo "$value-byte values, a connection a client; medians of $rounds interleaved turns:"
echo
awk '
    function median(list, count,  sorted, i, j, t) {
        split(list, sorted, " ")
        for (i = 2; i <= count; i++) {
            t = sorted[i] + 0
            for (j = i - 1; j > 0 && sorted[j] + 0 > t; j--) sorted[j + 1] = sorted[j]
            sorted[j + 1] = t
        }
        return count % 2 ? sorted[(count + 1) / 2] : (sorted[count / 2] + sorted[count / 2 + 1]) / 2
    }
    {
        key = $2 " " $3
        if (!(key in seen)) { seen[key] = 1; order[++lines] = key }
        count[$1, key]++
        rate[$1, key] = rate[$1, key] " " $4
        mid[$1, key] = mid[$1, key] " " $5
        tail[$1, key] = tail[$1, key] " " $6
    }
    END {
        printf "%-4s %7s  %10s %10s %7s  %8s %8s  %8s %8s\n", "", "clients", "etcd/s", "aspen/s",
            "ratio", "etcd p50", "aspen", "etcd p99", "aspen"
        for (l = 1; l <= lines; l++) {
            key = order[l]; split(key, part, " "); n = count["etcd", key]; m = count["aspen", key]
            e = median(rate["etcd", key], n); a = median(rate["aspen", key], m)
            printf "%-4s %7d  %10.0f %10.0f %6.2fx  %6.2fms %6.2fms  %6.2fms %6.2fms\n",
                part[1], part[2], e, a, a / e, median(mid["etcd", key], n),
                median(mid["aspen", key], m), median(tail["etcd", key], n),
                median(tail["aspen", key], m)
        }
    }' "$work/results"
