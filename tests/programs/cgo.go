// SPDX-License-Identifier: MIT

// cgo.go - a Go program that is linked with libc: its runtime calls the vDSO, C calls libc.
//
// Until SIGTERM; then prints, as a JSON object, how many of the runtime's readings were not between
// two of C's, and how many there were.
package main

// #include <time.h>
// static long long now(void)
// {
//	struct timespec ts;
//
//	clock_gettime(CLOCK_MONOTONIC, &ts);
//	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
// }
import "C"

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
	_ "unsafe" // for linkname
)

//go:linkname nanotime runtime.nanotime
func nanotime() int64

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	readings, wrong := 0, 0
	for {
		select {
		case <-stop:
			fmt.Printf("{\"wrong\": %d, \"readings\": %d}\n", wrong, readings)
			return
		default:
		}
		before := int64(C.now())
		now := nanotime()
		if now < before || now > int64(C.now()) {
			wrong++
		}
		readings++
	}
}
