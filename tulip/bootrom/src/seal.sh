#!/bin/sh
# seal.sh IMAGE: pads an option ROM to 512 bytes, writes its size into the two
# headers and makes the checksums of $PnP, UNDI and the whole image come out at
# zero. Offsets are those of layout.h.
set -eu
image=$1

put() { # put OFFSET BYTE...
	offset=$1; shift
	for byte; do
		printf "\\$(printf %03o "$byte")" |
			dd of="$image" bs=1 seek="$offset" conv=notrunc status=none
		offset=$((offset + 1))
	done
}

balance() { # balance START LENGTH AT: sets byte AT so that the range sums to 0
	put "$3" 0
	sum=$(od -An -v -tu1 -j "$1" -N "$2" "$image" |
		awk '{ for (i = 1; i <= NF; i++) s += $i } END { print (256 - s % 256) % 256 }')
	put "$3" "$sum"
}

size=$(wc -c < "$image")
units=$(((size + 511) / 512))
if [ "$units" -gt 127 ]; then
	echo "$image: $size bytes do not fit below 64 KiB" >&2
	exit 1
fi
truncate -s $((units * 512)) "$image"
put $((0x02)) "$units"
put $((0x30)) $((units % 256)) $((units / 256))
balance $((0x40)) $((0x20)) $((0x49))
balance $((0x60)) $((0x16)) $((0x65))
balance 0 $((units * 512)) 6
