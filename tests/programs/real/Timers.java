// SPDX-License-Identifier: MIT
//
// Timers.java - the timed waits of the Java platform that end by System.nanoTime().
//
//     java Timers.java LOG     until SIGTERM; what it writes is described in tests/timed.py

import java.io.FileOutputStream;
import java.io.OutputStream;
import java.nio.channels.Selector;
import java.time.Instant;
import java.util.ArrayDeque;
import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.locks.LockSupport;
import java.util.concurrent.locks.ReentrantLock;

class Timers {
    static final long MS = 1_000_000;

    static OutputStream record;

    record Moment(long own, long real) {
        static Moment now() {
            long own = System.nanoTime();
            Instant real = Instant.now();
            return new Moment(own, real.getEpochSecond() * 1_000_000_000 + real.getNano());
        }

        public String toString() {
            return "[" + own + ", " + real + "]";
        }
    }

    interface Wait {
        void of(long ms) throws Exception;
    }

    static synchronized void write(String line) {
        try {
            record.write((line + "\n").getBytes());
        } catch (java.io.IOException error) {
            throw new RuntimeException(error);
        }
    }

    static void wrote(String kind, Moment began, long due) {
        write("{\"wait\": \"" + kind + "\", \"began\": " + began + ", \"due\": " + due
            + ", \"ended\": " + Moment.now() + "}");
    }

    static Thread begin(Runnable work) {
        Thread thread = new Thread(work);
        thread.setDaemon(true);
        thread.start();
        return thread;
    }

    /** The same wait again and again, in a thread of its own. */
    static void repeat(String kind, long ms, Wait wait) {
        begin(() -> {
            for (;;) {
                Moment began = Moment.now();
                try {
                    wait.of(ms);
                } catch (TimeoutException expected) {
                    // what was waited for never happens
                } catch (Exception error) {
                    write("{\"error\": \"" + kind + ": " + error + "\"}");
                    return;
                }
                wrote(kind, began, began.own + ms * MS);
            }
        });
    }

    static void load() {
        begin(() -> {
            ArrayDeque<byte[]> heap = new ArrayDeque<>();
            for (int i = 0;; i++) {
                for (long until = System.nanoTime() + MS; System.nanoTime() < until;) {
                    heap.add(new byte[i % 1000]);
                }
                while (heap.size() > 20_000) {
                    heap.remove();
                }
                LockSupport.parkNanos(4 * MS);
            }
        });
    }

    /** Readings that stand for one moment; a step between two of them is written down. */
    static void readClocks(CountDownLatch stop) throws InterruptedException {
        long reads = 0;
        long backward = 0;
        Moment last = Moment.now();
        long before = last.own;
        for (;; reads++) {
            Moment now = Moment.now();
            long after = System.nanoTime();
            if (now.own < before || after < now.own) {
                backward++;
            }
            before = after;
            if (after - now.own < MS / 5) {
                if (Math.abs(now.own - last.own - (now.real - last.real)) > MS) {
                    write("{\"step\": [" + last + ", " + now + "]}");
                }
                last = now;
            }
            if (reads % 200 == 0 && stop.await(1, TimeUnit.MILLISECONDS)) {
                break;
            }
        }
        write("{\"end\": " + last + ", \"reads\": " + reads + ", \"backward\": " + backward + "}");
    }

    public static void main(String[] argv) throws Exception {
        record = new FileOutputStream(argv[0], true);
        CountDownLatch stop = new CountDownLatch(1);
        Thread main = Thread.currentThread();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            stop.countDown();
            try {
                main.join();
            } catch (InterruptedException impossible) {
                throw new RuntimeException(impossible);
            }
        }));

        Object monitor = new Object();
        ReentrantLock lock = new ReentrantLock();
        var condition = lock.newCondition();
        var queue = new ArrayBlockingQueue<Integer>(1);
        var never = new CompletableFuture<Void>();
        Selector selector = Selector.open();
        ReentrantLock held = new ReentrantLock();
        held.lock();
        Semaphore semaphore = new Semaphore(0);

        repeat("Thread.sleep", 700, Thread::sleep);
        repeat("Object.wait", 710, ms -> {
            synchronized (monitor) {
                monitor.wait(ms);
            }
        });
        repeat("LockSupport.parkNanos", 720, ms -> {
            for (long due = System.nanoTime() + ms * MS, left; (left = due - System.nanoTime()) > 0;) {
                LockSupport.parkNanos(left);
            }
        });
        repeat("Condition.awaitNanos", 730, ms -> {
            lock.lock();
            try {
                for (long left = ms * MS; left > 0;) {
                    left = condition.awaitNanos(left);
                }
            } finally {
                lock.unlock();
            }
        });
        repeat("BlockingQueue.poll", 740, ms -> queue.poll(ms, TimeUnit.MILLISECONDS));
        repeat("Future.get", 750, ms -> never.get(ms, TimeUnit.MILLISECONDS));
        repeat("CompletableFuture.orTimeout", 760, ms -> {
            try {
                new CompletableFuture<Void>().orTimeout(ms, TimeUnit.MILLISECONDS).get();
            } catch (ExecutionException expected) {
                // it timed out
            }
        });
        repeat("Selector.select", 770, selector::select);
        repeat("Lock.tryLock", 780, ms -> held.tryLock(ms, TimeUnit.MILLISECONDS));
        repeat("Semaphore.tryAcquire", 790, ms -> semaphore.tryAcquire(ms, TimeUnit.MILLISECONDS));
        repeat("Thread.join", 800, begin(LockSupport::park)::join);

        ScheduledExecutorService executor = Executors.newScheduledThreadPool(2, work -> {
            Thread thread = new Thread(work);
            thread.setDaemon(true);
            return thread;
        });
        Moment began = Moment.now();
        long[] due = {began.own};
        executor.scheduleAtFixedRate(() -> {
            due[0] += 250 * MS;
            wrote("ScheduledExecutor, every 250 ms", began, due[0]);
        }, 250, 250, TimeUnit.MILLISECONDS);
        load();
        readClocks(stop);
    }
}
