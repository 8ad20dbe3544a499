#!/bin/bash
# Ceph RADOS Gateway, the real S3 server of the tests: Ceph 20 from Debian sid, in a chroot, on loopback.
#
# Shows:  nothing by itself; `scripts/s3/servers` and the tests use it. Real production code that checks signatures,
#         checksums, conditional puts and Object Lock (it does not model Glacier: ministack does).
# Takes:  install ~2 min once per machine (1.1 GB under CEPH_ROOT); start ~15 s; stop 1 s.
# Needs:  root (chroot, own mount namespace), debootstrap, a Debian mirror in apt's configuration. No systemd, no docker.
#
#   ceph-s3.sh install                        skips when it is there
#   ceph-s3.sh start [PORT] [MONPORT] [NAME]  a fresh one-node cluster; prints the environment for clients
#   ceph-s3.sh stop [NAME]                    ends it and removes its data
#   ceph-s3.sh shell COMMAND…                 runs a command in the chroot
#
# CEPH_ROOT    where the chroot lies (default /var/cache/ceph-s3-root)
# CEPH_SUITE   Debian suite (default sid = Ceph 20; trixie = Ceph 18.2.7)
# RGW_LC_DEBUG seconds that a lifecycle "day" lasts (default -1: real days)
set -euo pipefail

root=${CEPH_ROOT:-/var/cache/ceph-s3-root}
suite=${CEPH_SUITE:-sid}

die() { echo "ceph-s3: $*" >&2; exit 1; }

# Runs a command in the chroot, with /proc, /dev and /sys, in a mount namespace of its own.
inside() {
  # shellcheck disable=SC2016  # $0 and $@ belong to the inner shell
  unshare -m bash -c 'set -e; for d in proc dev sys; do mount --bind "/$d" "$0/$d"; done; exec chroot "$0" "$@"' "$root" "$@"
}

install_chroot() {
  [ -e "$root/.ready" ] && return 0
  [ "$(id -u)" = 0 ] || die "needs root for the chroot"
  command -v debootstrap >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -q debootstrap
  rm -rf "$root"
  local mirror
  # The first mirror that apt itself uses, so no host is named here.
  # shellcheck disable=SC2016  # $(REPO_URI) is apt's own format
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | sort -u | grep -v security | sed -n 1p)
  [ -n "$mirror" ] || die "apt knows no mirror; run apt-get update first"
  debootstrap --variant=minbase "$suite" "$root" "$mirror"
  # Daemons must not start while packages are installed.
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
  chmod +x "$root/usr/sbin/policy-rc.d"
  mkdir -p "$root/etc/ssl/certs"
  cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
  cp /etc/hosts "$root/etc/"
  cp -L /etc/resolv.conf "$root/etc/" 2>/dev/null || :
  # A mirror's sid Release file may be past its validity.
  # shellcheck disable=SC2016  # the inner shell expands it
  inside sh -ec 'A="apt-get -o Acquire::Check-Valid-Until=false -q"
    $A update
    DEBIAN_FRONTEND=noninteractive $A install -y --no-install-recommends ceph-mon ceph-osd radosgw ceph-common curl
    apt-get clean'
  touch "$root/.ready"
}

write_node_script() { # NAME
  mkdir -p "$root/srv/$1"
  cat >"$root/srv/$1.sh" <<'NODE'
set -e
name=$1 port=$2 monport=$3 dir=/srv/$1
mkdir -p "$dir/mon" "$dir/osd" "$dir/run" "$dir/log"
fsid=$(cat /proc/sys/kernel/random/uuid)
osd_uuid=$(cat /proc/sys/kernel/random/uuid)
cat >"$dir/ceph.conf" <<CONF
[global]
fsid = $fsid
mon_host = v1:127.0.0.1:$monport
ms_bind_msgr2 = false
ms_bind_ipv6 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
run_dir = $dir/run
log_file = $dir/log/\$name.log
crash_dir = $dir/run
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_crush_chooseleaf_type = 0
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 2000
mon_data_avail_crit = 1
mon_data_avail_warn = 2
[mon]
mon_data = $dir/mon
pid_file = $dir/run/mon.pid
admin_socket = $dir/run/mon.asok
[osd]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
osd_data = $dir/osd
osd_objectstore = bluestore
osd_memory_target = 1073741824
bluestore_block_size = 21474836480
bluestore_cache_size = 268435456
osd_class_load_list = *
osd_class_default_list = *
pid_file = $dir/run/osd.pid
admin_socket = $dir/run/osd.asok
[client.rgw]
pid_file = $dir/run/rgw.pid
# Without tcp_nodelay every GET waits 44 ms for the client's delayed acknowledgement.
rgw_frontends = beast endpoint=127.0.0.1:$port tcp_nodelay=1
rgw_dns_name = localhost
rgw_crypt_require_ssl = false
rgw_gc_obj_min_wait = 5
rgw_lc_debug_interval = ${RGW_LC_DEBUG:--1}
rgw_override_bucket_index_max_shards = 1
CONF
common="-c $dir/ceph.conf --setuser root --setgroup root"
monmaptool --create --clobber --addv a "[v1:127.0.0.1:$monport]" --fsid "$fsid" "$dir/monmap" >/dev/null
ceph-mon $common -i a --mkfs --monmap "$dir/monmap"
ceph-mon $common -i a
for _ in 1 2 3 4 5; do
  timeout 20 ceph -c "$dir/ceph.conf" osd new "$osd_uuid" >/dev/null 2>"$dir/log/osdnew.err" && break
  sleep 0.5
done
ceph-osd $common -i 0 --mkfs --osd-uuid "$osd_uuid" 2>"$dir/log/mkfs.err"
ceph-osd $common -i 0 >/dev/null 2>"$dir/log/osd.err"
admin="radosgw-admin -c $dir/ceph.conf"
$admin user create --uid=larder --display-name=larder --access-key=LARDERKEY --secret-key=lardersecret \
  >/dev/null 2>"$dir/log/admin.err"
for class in STANDARD_IA GLACIER DEEP_ARCHIVE; do
  $admin zonegroup placement add --rgw-zonegroup default --placement-id default-placement --storage-class $class
  $admin zone placement add --rgw-zone default --placement-id default-placement --storage-class $class \
    --data-pool default.rgw.buckets.data
done >/dev/null 2>>"$dir/log/admin.err"
radosgw $common -n client.rgw >/dev/null 2>"$dir/log/rgw.err"
for _ in $(seq 600); do
  curl -sf -o /dev/null "http://127.0.0.1:$port/" && exit 0
  sleep 0.1
done
echo "radosgw did not answer within 60 s; logs in $dir/log of the chroot" >&2
exit 1
NODE
}

# What the daemons said before they gave up: each step of the node's script has a log of its own.
tell_why() { # DIRECTORY
  local log
  for log in "$1/start.log" "$1"/log/*; do
    [ -s "$log" ] || continue
    echo "ceph-s3: end of ${log##*/}:" >&2
    tail -n 8 "$log" | cut -c1-300 >&2
  done
}

case ${1:-} in
install) install_chroot ;;
start)
  port=${2:-7480} monport=${3:-6789} name=${4:-s3}
  [ -e "$root/.ready" ] || die "not installed; run: $0 install"
  [ ! -e "$root/srv/$name/run/rgw.pid" ] || die "'$name' runs already or was not stopped; run: $0 stop $name"
  write_node_script "$name"
  # The daemons hold no descriptor of the caller, so that `eval "$(servers start ceph)"` ends.
  inside bash "/srv/$name.sh" "$name" "$port" "$monport" </dev/null >"$root/srv/$name/start.log" 2>&1 ||
    { tell_why "$root/srv/$name"; die "did not start"; }
  echo "AWS_ENDPOINT_URL_S3=http://127.0.0.1:$port"
  echo "AWS_ACCESS_KEY_ID=LARDERKEY"
  echo "AWS_SECRET_ACCESS_KEY=lardersecret"
  echo "AWS_REGION=us-east-1"
  ;;
stop)
  name=${2:-s3}
  for daemon in rgw osd mon; do
    pidfile=$root/srv/$name/run/$daemon.pid
    [ -s "$pidfile" ] || continue
    pid=$(cat "$pidfile")
    # The number may belong to another program by now.
    grep -aqE 'radosgw|ceph-(osd|mon)' "/proc/$pid/cmdline" 2>/dev/null || continue
    kill -9 "$pid" 2>/dev/null || continue
    # A new start on the same port must not meet the old daemon.
    for _ in $(seq 300); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  done
  rm -rf "${root:?}/srv/$name" "$root/srv/$name.sh"
  ;;
shell) shift; inside "$@" ;;
*) echo "usage: $0 install | start [PORT] [MONPORT] [NAME] | stop [NAME] | shell COMMAND…" >&2; exit 1 ;;
esac
