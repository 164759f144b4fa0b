package device

import "polder/vswitch"

// Puller returns a function that pulls from the first queue, once.
func (p *hostPort) Puller(m *vswitch.Member) func() int {
	q := p.queues[0]
	q.in = m.NewIngress()
	return func() int { return q.Pull(hostBatch) }
}
