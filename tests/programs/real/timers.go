// SPDX-License-Identifier: MIT

// timers.go - Go's timers, in a program that is linked with libc.
//
//	timers LOG     until SIGTERM; what it writes is described in tests/timed.py
package main

// #include <time.h>
// static void c_sleep(long ns)
// {
//	struct timespec span = { ns / 1000000000, ns % 1000000000 };
//
//	while (nanosleep(&span, &span))
//		;
// }
import "C"

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"
)

var (
	record *os.File
	start  = time.Now() // what Go calls a monotonic clock reading counts from here
)

type moment struct{ own, real int64 }

func now() moment {
	at := time.Now() // both clocks, read at once
	return moment{int64(at.Sub(start)), at.UnixNano()}
}

func (m moment) String() string { return fmt.Sprintf("[%d, %d]", m.own, m.real) }

func wrote(kind string, began moment, due int64) {
	fmt.Fprintf(record, "{\"wait\": %q, \"began\": %v, \"due\": %d, \"ended\": %v}\n", kind, began, due, now())
}

// The same wait again and again, in a goroutine of its own.
func repeat(kind string, span time.Duration, wait func(time.Duration)) {
	go func() {
		for {
			began := now()
			wait(span)
			wrote(kind, began, began.own+int64(span))
		}
	}()
}

func load() {
	heap := map[int][]byte{}
	for i := 0; ; i++ {
		for until := time.Now().Add(time.Millisecond); time.Now().Before(until); {
			heap[len(heap)] = make([]byte, i%1000)
		}
		if len(heap) > 50000 {
			heap = map[int][]byte{}
		}
		time.Sleep(4 * time.Millisecond)
	}
}

// Readings that stand for one moment; a step between two of them is written down.
func readClocks(stop <-chan os.Signal) {
	reads, backward := 0, 0
	last := now()
	before := last.own
	for ; ; reads++ {
		at := now()
		after := int64(time.Since(start))
		if at.own < before || after < at.own {
			backward++
		}
		narrow := after-before < int64(200*time.Microsecond) // time.Now() itself can be interrupted
		before = after
		if narrow {
			step := at.own - last.own - (at.real - last.real)
			if step > int64(time.Millisecond) || step < -int64(time.Millisecond) {
				fmt.Fprintf(record, "{\"step\": [%v, %v]}\n", last, at)
			}
			last = at
		}
		if reads%200 == 0 {
			select {
			case <-stop:
				fmt.Fprintf(record, "{\"end\": %v, \"reads\": %d, \"backward\": %d}\n", last, reads, backward)
				return
			case <-time.After(time.Millisecond):
			}
		}
	}
}

func main() {
	var err error
	if record, err = os.OpenFile(os.Args[1], os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644); err != nil {
		panic(err)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)

	repeat("time.Sleep", 700*time.Millisecond, time.Sleep)
	repeat("time.After", 710*time.Millisecond, func(span time.Duration) { <-time.After(span) })
	repeat("context.WithTimeout", 720*time.Millisecond, func(span time.Duration) {
		ctx, cancel := context.WithTimeout(context.Background(), span)
		<-ctx.Done()
		cancel()
	})
	repeat("time.AfterFunc", 730*time.Millisecond, func(span time.Duration) {
		var group sync.WaitGroup
		group.Add(1)
		time.AfterFunc(span, group.Done)
		group.Wait()
	})
	reader, writer, err := os.Pipe()
	if err != nil {
		panic(err)
	}
	repeat("read deadline of a pipe", 740*time.Millisecond, func(span time.Duration) {
		reader.SetReadDeadline(time.Now().Add(span))
		reader.Read(make([]byte, 1))
	})
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		panic(err)
	}
	repeat("read deadline of a socket", 750*time.Millisecond, func(span time.Duration) {
		socket.SetReadDeadline(time.Now().Add(span))
		socket.Read(make([]byte, 1))
	})
	repeat("nanosleep in C", 760*time.Millisecond, func(span time.Duration) { C.c_sleep(C.long(span)) })
	go func() {
		const period = 250 * time.Millisecond
		began := now()
		due := began.own
		for range time.NewTicker(period).C {
			due += int64(period)
			for now().own-due >= int64(period) { // a ticker drops what nobody takes
				due += int64(period)
			}
			wrote("Ticker, every 250 ms", began, due)
		}
	}()
	go load()
	readClocks(stop)
	runtime.KeepAlive(writer) // or the pipe would be closed as garbage
}
