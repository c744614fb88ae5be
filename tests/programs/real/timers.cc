// SPDX-License-Identifier: MIT
//
// timers.cc - every timed wait of the C++ standard library that ends by steady_clock.
//
//     timers LOG     until SIGTERM; what it writes is described in tests/timed.py
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <future>
#include <mutex>
#include <semaphore>
#include <shared_mutex>
#include <string>
#include <thread>
#include <vector>

using namespace std::chrono;
using steady = steady_clock::time_point;

static FILE *record;

static long long ns(auto time)
{
	return duration_cast<nanoseconds>(time.time_since_epoch()).count();
}

struct moment {
	steady own = steady_clock::now();
	system_clock::time_point real = system_clock::now();
};

static void wrote(const char *kind, const moment &began, steady due)
{
	moment ended;

	// one call, so that lines of threads do not mix
	fprintf(record,
		"{\"wait\": \"%s\", \"began\": [%lld, %lld], "
		"\"due\": %lld, \"ended\": [%lld, %lld]}\n",
		kind, ns(began.own), ns(began.real), ns(due), ns(ended.own), ns(ended.real));
}

// The same wait again and again, in a thread of its own.
static void repeat(const char *kind, milliseconds span,
		   std::function<void(milliseconds, steady)> wait)
{
	std::thread([=] {
		for (;;) {
			moment began;

			wait(span, began.own + span);
			wrote(kind, began, began.own + span);
		}
	}).detach();
}

static void tick(const char *kind, milliseconds period)
{
	std::thread([=] {
		moment began;

		for (steady due = began.own + period;; due += period) {
			std::this_thread::sleep_until(due);
			wrote(kind, began, due);
		}
	}).detach();
}

static void load()
{
	std::thread([] {
		std::vector<std::string> heap;

		for (unsigned long i = 0;; i++) {
			for (steady until = steady_clock::now() + 1ms; steady_clock::now() < until;)
				heap.push_back(std::string(i % 1000, 'x'));
			if (heap.size() > 50000)
				heap.clear();
			std::this_thread::sleep_for(4ms);
		}
	}).detach();
}

// Readings that stand for one moment; a step between two of them is written down.
static void read_clocks()
{
	long long reads = 0, backward = 0;
	moment last, before;

	for (;; reads++) {
		moment now;
		steady after = steady_clock::now();

		backward += now.own < before.own || after < now.own;
		before.own = after;
		if (after - now.own < 200us) {
			long long step =
				ns(now.own) - ns(last.own) - (ns(now.real) - ns(last.real));

			if (std::abs(step) > 1000000)
				fprintf(record, "{\"step\": [[%lld, %lld], [%lld, %lld]]}\n",
					ns(last.own), ns(last.real), ns(now.own), ns(now.real));
			last = now;
		}
		if (reads % 200 == 0) {
			sigset_t terminate;
			timespec millisecond = { 0, 1000000 };

			sigemptyset(&terminate);
			sigaddset(&terminate, SIGTERM);
			if (sigtimedwait(&terminate, nullptr, &millisecond) == SIGTERM)
				break;
		}
	}
	fprintf(record, "{\"end\": [%lld, %lld], \"reads\": %lld, \"backward\": %lld}\n",
		ns(last.own), ns(last.real), reads, backward);
	fflush(record);
	_Exit(0);
}

int main(int, char **argv)
{
	static std::promise<void> promise;
	static std::shared_future<void> future = promise.get_future();
	static std::mutex mutex;
	static std::condition_variable condition;
	static std::condition_variable_any any;
	static std::timed_mutex timed;
	static std::recursive_timed_mutex recursive;
	static std::shared_timed_mutex shared;
	static std::counting_semaphore<> semaphore{ 0 };
	sigset_t terminate;

	record = fopen(argv[1], "a");
	setvbuf(record, nullptr, _IOLBF, 4096);
	sigemptyset(&terminate);
	sigaddset(&terminate, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &terminate, nullptr);

	timed.lock();
	recursive.lock();
	shared.lock();
	repeat("sleep_for", 700ms, [](auto span, auto) { std::this_thread::sleep_for(span); });
	repeat("sleep_until", 710ms, [](auto, auto due) { std::this_thread::sleep_until(due); });
	repeat("future wait_for", 720ms, [](auto span, auto) { future.wait_for(span); });
	repeat("future wait_until", 730ms, [](auto, auto due) { future.wait_until(due); });
	repeat("condition_variable wait_for", 740ms, [](auto span, auto) {
		std::unique_lock lock(mutex);
		condition.wait_for(lock, span, [] { return false; });
	});
	repeat("condition_variable wait_until", 750ms, [](auto, auto due) {
		std::unique_lock lock(mutex);
		condition.wait_until(lock, due, [] { return false; });
	});
	repeat("condition_variable_any wait_for", 760ms, [](auto span, auto) {
		std::unique_lock lock(mutex);
		any.wait_for(lock, span, [] { return false; });
	});
	repeat("timed_mutex try_lock_for", 770ms,
	       [](auto span, auto) { (void)timed.try_lock_for(span); });
	repeat("timed_mutex try_lock_until", 780ms,
	       [](auto, auto due) { (void)timed.try_lock_until(due); });
	repeat("recursive_timed_mutex try_lock_for", 790ms,
	       [](auto span, auto) { (void)recursive.try_lock_for(span); });
	repeat("shared_timed_mutex try_lock_for", 800ms,
	       [](auto span, auto) { (void)shared.try_lock_for(span); });
	repeat("shared_timed_mutex try_lock_shared_for", 810ms,
	       [](auto span, auto) { (void)shared.try_lock_shared_for(span); });
	repeat("semaphore try_acquire_for", 820ms,
	       [](auto span, auto) { (void)semaphore.try_acquire_for(span); });
	tick("sleep_until, every 250 ms", 250ms);
	load();
	read_clocks();
}
