package virtq

// SetLog makes the queue report all guest memory that it writes, or that its owner was given to write, for the
// sake of live migration: fn is called with guest-physical ranges from Publish, Arm and Disarm, after
// the memory was written. The ranges may be larger than what was written. nil ends that. Buffers of chains
// taken before are not reported.
func (q *Queue) SetLog(fn func(gpa uint64, n int)) {
	q.log = fn
	q.dirty = q.dirty[:0]
}

// logBuffers reports what was written to buffers.
func (q *Queue) logBuffers() {
	for _, s := range q.dirty {
		q.log(s.gpa, s.n)
	}
	q.dirty = q.dirty[:0]
}

// logUsedSplit reports the used entries from index old on, and the index.
func (q *Queue) logUsedSplit(old uint16) {
	q.logBuffers()
	q.logRing(q.cfg.Device+4, 8, int(old&q.split.mask), int(q.split.published-old))
	q.log(q.cfg.Device, 4)
}

// logUsedPacked reports count descriptors from first on.
func (q *Queue) logUsedPacked(first cursor, count int) {
	q.logBuffers()
	q.logRing(q.cfg.Desc, 16, int(first.index), count)
}

// logRing reports count entries of size bytes, from entry i on, of the ring at gpa.
func (q *Queue) logRing(gpa uint64, size, i, count int) {
	if over := i + count - int(q.cfg.Num); over > 0 {
		q.log(gpa, size*over)
		count -= over
	}
	q.log(gpa+uint64(size*i), size*count)
}
