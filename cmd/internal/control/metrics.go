package control

import (
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"polder/cmd/internal/api"
)

// Metrics answers with w's counters in Prometheus' text. There are no labels whose values guests
// choose: no MAC addresses.
func Metrics(w World) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(
		&collector{w},
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

// collector reads a World at each scrape.
type collector struct{ w World }

// portLabels say which port a metric is of.
var portLabels = []string{"switch", "port", "kind"}

func portMetric(name, help string, more ...string) *prometheus.Desc {
	return prometheus.NewDesc("polder_port_"+name, help, append(portLabels[:len(portLabels):len(portLabels)], more...), nil)
}

var (
	descInfo     = prometheus.NewDesc("polder_build_info", "The daemon's version; always 1.", []string{"version"}, nil)
	descUptime   = prometheus.NewDesc("polder_uptime_seconds", "Time since the daemon was started.", nil, nil)
	descFDB      = prometheus.NewDesc("polder_fdb_entries", "Addresses that the switch knows the way to.", []string{"switch", "type"}, nil)
	descAttached = portMetric("attached", "Whether a hypervisor is attached, or the port works by itself.")
	descRxFrames = portMetric("rx_frames_total", "Frames that the port sent into the switch.")
	descRxBytes  = portMetric("rx_bytes_total", "Bytes of these frames, without FCS.")
	descTxFrames = portMetric("tx_frames_total", "Frames that the switch gave to the port.")
	descTxBytes  = portMetric("tx_bytes_total", "Bytes of these frames, without FCS.")
	descDrops    = portMetric("drops_total", "Frames that were not passed on, by reason.", "reason")
	descACL      = portMetric("acl_matches_total", "Frames that a rule of the adapter's ACL has matched.", "rule")
	descGSO      = portMetric("gso_segments_total", "Frames made in software of large ones for the port.")
	descCsum     = portMetric("checksums_completed_total", "Checksums completed in software for the port.")
	descMoves    = portMetric("mac_moves_total", "Addresses that were behind another port before.")
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descInfo, descUptime, descFDB, descAttached, descRxFrames, descRxBytes, descTxFrames, descTxBytes, descDrops, descACL, descGSO, descCsum, descMoves,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	s := c.w.Status()
	gauge(descInfo, 1, s.Version)
	gauge(descUptime, s.Uptime.Seconds())
	for _, sw := range s.Switches {
		gauge(descFDB, float64(len(sw.FDB)), sw.Name, sw.Type)
		for _, p := range sw.Ports {
			collectPort(ch, &p, sw.Name, p.Name, p.Kind)
		}
	}
	for _, p := range s.Adapters {
		collectPort(ch, &p, "", p.Name, p.Kind)
	}
}

func collectPort(ch chan<- prometheus.Metric, p *api.Port, labels ...string) {
	attached := 0.0
	if p.Attached {
		attached = 1
	}
	ch <- prometheus.MustNewConstMetric(descAttached, prometheus.GaugeValue, attached, labels...)
	count := func(d *prometheus.Desc, v uint64, more ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), append(labels[:len(labels):len(labels)], more...)...)
	}
	count(descRxFrames, p.RxFrames)
	count(descRxBytes, p.RxBytes)
	count(descTxFrames, p.TxFrames)
	count(descTxBytes, p.TxBytes)
	count(descGSO, p.GSOSegmented)
	count(descCsum, p.ChecksumsCompleted)
	count(descMoves, p.MACMoves)
	for reason, n := range p.Drops {
		count(descDrops, n, reason)
	}
	for i, n := range p.ACL {
		count(descACL, n, strconv.Itoa(i+1))
	}
}
