# What a tiny guest's script may use beside busybox. Addresses of the service: $V4, $V6, and $LL by way of eth0.
V4=169.254.169.254 V6=fd00:ec2::254 LL=fe80::a9fe:a9fe%eth0
ID=/latest/meta-data/instance-id

# up DEVICE: set it up and wait for its carrier.
up() { ip link set "$1" up; while [ "$(cat /sys/class/net/$1/carrier)" != 1 ]; do usleep 20000; done; }

# settled DEVICE: wait until its IPv6 link-local address can be used.
settled() { until ip -6 addr show dev "$1" scope link | grep inet6 | grep -qv tentative; do usleep 20000; done; }

# configure DEVICE CIDR...: static addresses, routes to the service on the link, and no default route.
configure() {
	device=$1; shift; up "$device"; settled "$device"
	for cidr; do ip addr add "$cidr" dev "$device"; done
	ip route replace 169.254.0.0/16 dev "$device" scope link 2>/dev/null
	ip -6 route replace fd00:ec2::254/128 dev "$device"
}

# await WORD: wait until the host has told it.
await() { until read -r told <&3 && [ "$told" = "$1" ]; do :; done; }

# get ADDRESS PATH [SECONDS]: the body of a 200. wget's status; 143 when it took too long. (Its own -T crashes.)
get() {
	case $1 in *:*) url="http://[$1]$2" ;; *) url="http://$1$2" ;; esac
	timeout "${3:-20}" wget -q -O - "$url"
}

# tag ADDRESS PATH: the entity tag of what is there.
tag() { timeout 20 wget -S -O /dev/null "http://$1$2" 2>&1 | sed -n 's/.*etag: "\(.*\)".*/\1/Ip'; }

# outcome ADDRESS [PATH [SECONDS]]: the body of a 200, or the status, or `refused`, `reset`, `timeout`.
outcome() {
	met=$(get "$1" "${2:-$ID}" "${3:-20}" 2>&1)
	case $?:$met in
	0:*) echo "$met" ;;
	143:*) echo timeout ;;
	*refused*) echo refused ;;
	*reset*) echo reset ;;
	*"HTTP/1.1 "*) met=${met#*HTTP/1.1 }; echo "${met%% *}" ;;
	*) echo "$met" ;;
	esac
}

# ask ADDRESS METHOD PATH [FILE]: what wget has no word for. The status, then the answer's body, which is text.
# With PORT set it comes from that port. The request is one file, so that the kernel gets as much as it takes at once;
# the guest's side stays open until the answer is there, as that of an HTTP client does.
ask() {
	work=$(mktemp -d)
	body=${4:-/dev/null}
	printf '%s %s HTTP/1.1\r\nHost: metadata\r\nConnection: close\r\nContent-Length: %d\r\n\r\n' \
		"$2" "$3" "$(wc -c <"$body")" | cat - "$body" >"$work/request"
	printf '#!/bin/sh\ncat %s/request\ncat >%s/answer\n' "$work" "$work" >"$work/talk"
	chmod +x "$work/talk"
	timeout 60 nc ${PORT:+-p $PORT} "$1" 80 -e "$work/talk" || echo "nc ended with $?"
	sed 's/\r$//; 1s/HTTP.1.1 \([0-9]*\).*/\1/; 2,/^$/d' "$work/answer"
	rm -r "$work"
}

# same COUNT COMMAND...: run it so many times side by side; how often each thing was said, as `COUNT TEXT`.
same() {
	count=$1; shift
	for number in $(seq "$count"); do { "$@" 2>&1; echo; } >/tmp/same.$number & done
	wait
	cat /tmp/same.* | grep . | sort | uniq -c | sed 's/^ *//'; rm /tmp/same.*
}
