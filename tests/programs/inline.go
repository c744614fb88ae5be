// SPDX-License-Identifier: MIT

// inline.go - a Go program without libc, which asks the kernel for the time itself.
//
// Until SIGTERM; then prints, as watch.c does, what MONOTONIC (the runtime's) and BOOTTIME (a system
// call) did, measured against CLOCK_REALTIME.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
	"unsafe"
)

const moment = 50 * time.Microsecond

type clock struct {
	read                            func() int64
	seen, first, last, gained, back int64
	begun                           bool
}

// look compares a reading with two of CLOCK_REALTIME that are a moment apart.
func (c *clock) look() {
	for {
		before := time.Now().UnixNano()
		now := c.read()
		after := time.Now().UnixNano()
		if now < c.seen {
			c.back++
		}
		c.seen = now
		if after-before > int64(moment) {
			continue
		}
		lead := now - before
		if !c.begun {
			c.first, c.last, c.begun = lead, lead, true
		}
		if lead-c.last > c.gained {
			c.gained = lead - c.last
		}
		c.last = lead
		return
	}
}

func (c *clock) report() string {
	return fmt.Sprintf(`{"backward": %d, "gained_ns": %d, "lost_ns": %d}`,
		c.back, c.gained, c.first-c.last)
}

func main() {
	const boottime = 7
	start := time.Now()
	mono := clock{read: func() int64 { return int64(time.Since(start)) }}
	boot := clock{read: func() int64 {
		var ts syscall.Timespec
		syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, boottime, uintptr(unsafe.Pointer(&ts)), 0)
		return ts.Nano()
	}}
	enough := make(chan os.Signal, 1)
	signal.Notify(enough, syscall.SIGTERM)
	for {
		select {
		case <-enough:
			fmt.Printf("{\"monotonic\": %s, \"boottime\": %s}\n", mono.report(), boot.report())
			return
		default:
			mono.look()
			boot.look()
			time.Sleep(200 * time.Microsecond)
		}
	}
}
