package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Switches of several hosts are joined by what the hosts have for that: a VXLAN of the kernel's, or Open vSwitch. The
// commands are those of the documentation. Each scenario has a network namespace of its own as the one host, makes another
// one as the other host, and has that fetch a file of the boot service on the switch, in full frames.

// scenario runs a shell script as root of new network and process namespaces. $other is the process id of the other host, whose
// commands are run by there; lab.yaml is the daemon's configuration, and file what its boot service has to offer.
func scenario(t *testing.T, config, script string) {
	t.Helper()
	t.Parallel()
	dir, err := os.MkdirTemp("", "polder-") // the path of a socket is limited to 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.WriteFile(filepath.Join(dir, "lab.yaml"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	const frame = `set -eu
cd "$WORK"
there() { nsenter -t $other -n "$@"; }
soon() { n=200; until "$@" >/dev/null 2>&1; do n=$((n-1)); [ $n != 0 ] || { echo "$* failed:"; "$@"; return 1; }; sleep 0.05; done; }
ip link set lo up
unshare -n sleep infinity & other=$!
soon sh -c "[ \$(readlink /proc/$other/ns/net) != \$(readlink /proc/self/ns/net) ]"
ip link add u0 type veth peer name u0 netns $other
ip link set u0 up
there ip link set u0 up
mkdir root
head -c 3000000 /dev/urandom >root/file
serve() {
	"$POLDER" serve --runtime-dir "$WORK/run" --state-dir "$WORK/state" -c lab.yaml & daemon=$!
	soon "$POLDER" show --runtime-dir "$WORK/run"
}
fetch() {
	soon there timeout 5 busybox wget -O got http://10.21.140.1/file
	cmp got root/file
}
`
	unshare := []string{"--net", "--pid", "--fork", "--kill-child", "--mount-proc"}
	if os.Geteuid() != 0 {
		unshare = append(unshare, "--map-root-user")
	}
	ctx, cancel := context.WithTimeout(context.Background(), bootLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", append(unshare, "sh", "-c", frame+script)...)
	cmd.Env = append(os.Environ(), "WORK="+dir, "POLDER="+polder, "CACHE="+cache.Path("."), "PATH="+cache.Path("bin")+":/usr/sbin:/sbin:"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasSuffix(string(out), "done\n") {
		t.Errorf("%v\n%s", err, out)
	}
}

// A switch joins a bridge which a VXLAN with a static list of hosts connects with the bridge of another host.
func TestVXLAN(t *testing.T) {
	scenario(t, `
switches:
  - name: lab
    type: external
    uplink: {bridge: br-lab}
    pxe: {root: root}
`, `
ip address add 192.0.2.1/24 dev u0
there ip address add 192.0.2.2/24 dev u0
# Each host, with its own address and the others':
ip link add br-lab type bridge
ip link add vx100 type vxlan id 100 dstport 4789 local 192.0.2.1
ip link set vx100 mtu 1450 master br-lab
bridge fdb append 00:00:00:00:00:00 dev vx100 dst 192.0.2.2
ip link set br-lab up
ip link set vx100 up
there ip link add br-lab type bridge
there ip link add vx100 type vxlan id 100 dstport 4789 local 192.0.2.2
there ip link set vx100 mtu 1450 master br-lab
there bridge fdb append 00:00:00:00:00:00 dev vx100 dst 192.0.2.1
there ip link set br-lab up
there ip link set vx100 up
there ip address add 10.21.140.99/24 dev br-lab
serve
fetch
# The switch's port in the bridge has the bridge's MTU, and the file came through the tunnel.
ip -o link show master br-lab type tun | grep "mtu 1450"
[ $(cat /proc/net/dev | sed -n 's/^ *vx100: *//p' | tr -s ' ' | cut -d' ' -f9) -gt 3000000 ]
# The daemon leaves the bridge as it was.
kill $daemon
wait $daemon
[ "$(ip -o link show master br-lab | wc -l)" = 1 ]
echo done
`)
}

// The host's own adapter on an internal switch, without an address, is a port of an Open vSwitch bridge. Where the kernel has no
// module for that, the bridge is one in user space.
func TestOpenVSwitch(t *testing.T) {
	scenario(t, `
switches:
  - name: lab
    type: internal
    management: {name: ovs-lab}
    pxe: {root: root}
`, `
export OVS_RUNDIR="$WORK"
ovsdb-tool create conf.db "$CACHE"/dpdk/usr/share/openvswitch/vswitch.ovsschema
ovsdb-server --remote=punix:"$WORK"/db.sock -vconsole:emer conf.db &
soon ovs-vsctl --db=unix:"$WORK"/db.sock --timeout=5 --no-wait init
ovs-vswitchd-dpdk -vconsole:emer unix:"$WORK"/db.sock &
vsctl() { ovs-vsctl --db=unix:"$WORK"/db.sock --timeout=20 "$@"; }
vsctl add-br br0 -- set bridge br0 datapath_type=netdev
vsctl add-port br0 u0
there ip address add 10.21.140.99/24 dev u0
there ethtool -K u0 tx off >/dev/null # the bridge in user space makes no checksums
serve
vsctl add-port br0 ovs-lab
fetch
kill $daemon
wait $daemon
if ip link show ovs-lab 2>/dev/null; then exit 1; fi
echo done
`)
}

// A host whose network adapter an external switch has taken is reached as before, beside what is on the switch; it stays
// on the network when the daemon is killed, if a bridge of the kernel carries the frames, and comes back with the daemon if not;
// and when the daemon ends everything is as it was.
func TestExternalHost(t *testing.T) {
	for _, driver := range []string{"bridge", "packet"} {
		t.Run(driver, func(t *testing.T) {
			scenario(t, `
switches:
  - name: lab
    type: external
    uplink: {nic: u0, driver: `+driver+`}
    pxe: {address: 10.21.140.1/24, root: root}
`, `
ip address add 10.21.140.2/24 dev u0
ip route add default via 10.21.140.99
there ip address add 10.21.140.99/24 dev u0
state() { ip -o link show u0; ip -o -4 address; ip -4 route show table all; ip rule; }
state >before
reached() { there busybox ping -c 1 -W 1 10.21.140.2; }
soon reached
serve
[ "$(ip -o -4 address show dev vEth-lab | grep -c 10.21.140.2/24)" = 1 ]
[ -z "$(ip -o -4 address show dev u0)" ]
fetch
reached
kill -9 $daemon
wait $daemon || :
case `+driver+` in
bridge) reached ;;
packet) if reached; then echo "reached without a switch"; exit 1; fi ;;
esac
serve
fetch
reached
kill $daemon
wait $daemon
state >after
diff before after
soon reached
[ -z "$(ls state/hostnet)" ]
echo done
`)
		})
	}
}
