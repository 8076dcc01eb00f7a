// Sets values on one of three bcache nodes in one process until the two others hold them, for
// cluster.py --bcache. Neither Go nor bcache (github.com/iwanbk/bcache) is needed for anything else.
//
// With bcache and what it imports in a GOPATH:
//
//	GO111MODULE=off go build -o cluster_bcache benchmarks/cluster_bcache.go
//	./cluster_bcache SECONDS
package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/iwanbk/bcache"
)

const (
	nodes   = 3
	keys    = 50000
	keysMax = 100000
	ttl     = 3600
	every   = 8000 // sets, after which it waits until the others have come to 8,000 before
	waitMax = 60 * time.Second
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func freeAddress() string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	defer listener.Close()
	return listener.Addr().String()
}

func key(number int) string   { return fmt.Sprintf("key:%07d", number%keys) }
func value(number int) string { return fmt.Sprintf("%0100d", number) }

// await waits until all nodes hold that set, or a later one of its key.
func await(all []*bcache.Bcache, number int) {
	end := time.Now().Add(waitMax)
	for _, node := range all {
		for {
			if found, ok := node.Get(key(number)); ok && found >= value(number) {
				break
			}
			if time.Now().After(end) {
				check(fmt.Errorf("set %d has not arrived within %s", number, waitMax))
			}
			time.Sleep(100 * time.Microsecond)
		}
	}
}

func main() {
	if len(os.Args) != 2 {
		check(fmt.Errorf("usage: cluster_bcache SECONDS"))
	}
	seconds, err := strconv.ParseFloat(os.Args[1], 64)
	check(err)
	all := make([]*bcache.Bcache, nodes)
	first := ""
	for number := range all {
		config := bcache.Config{
			PeerID: uint64(number + 1), ListenAddr: freeAddress(), MaxKeys: keysMax,
		}
		if number == 0 {
			first = config.ListenAddr
		} else {
			config.Peers = []string{first}
		}
		all[number], err = bcache.New(config)
		check(err)
	}
	// They are connected when each has what another wrote.
	for number, node := range all {
		name := fmt.Sprintf("hello:%d", number)
		for seen := 0; seen < nodes; time.Sleep(100 * time.Millisecond) {
			node.Set(name, name, ttl)
			seen = 0
			for _, other := range all {
				if _, ok := other.Get(name); ok {
					seen++
				}
			}
		}
	}
	time.Sleep(time.Second)
	began := time.Now()
	duration := time.Duration(seconds * float64(time.Second))
	sets := 0
	for time.Since(began) < duration {
		all[0].Set(key(sets), value(sets), ttl)
		sets++
		if sets%every == 0 && sets > every {
			await(all, sets-every-1)
		}
	}
	for number := sets - 1; number >= 0 && number >= sets-keys; number-- {
		await(all, number)
	}
	taken := time.Since(began).Seconds()
	check(json.NewEncoder(os.Stdout).Encode(map[string]interface{}{
		"sets": sets, "seconds": taken, "sets_s": float64(sets) / taken,
	}))
}
