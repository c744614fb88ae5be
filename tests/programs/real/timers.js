// SPDX-License-Identifier: MIT
//
// timers.js - the timers of Node.js, in the main thread and in a worker.
//
//     node timers.js LOG     until SIGTERM; what it writes is described in tests/timed.py
//
// Its wall clock, Date.now(), counts milliseconds.
"use strict";
const fs = require("fs");
const http = require("http");
const { setTimeout: sleep } = require("timers/promises");
const { Worker, isMainThread, workerData } = require("worker_threads");

const MS = 1_000_000;
const path = isMainThread ? process.argv[2] : workerData;
const record = fs.openSync(path, "a");

function now() {
    return { own: Number(process.hrtime.bigint()), real: Date.now() * MS };
}

const pair = (moment) => `[${moment.own}, ${moment.real}]`;

function wrote(kind, began, due) {
    fs.writeSync(record,
        `{"wait": "${kind}", "began": ${pair(began)}, "due": ${due}, "ended": ${pair(now())}}\n`);
}

// The same wait again and again; wait(ms, done).
function repeat(kind, ms, wait) {
    const began = now();
    wait(ms, () => {
        wrote(kind, began, began.own + ms * MS);
        repeat(kind, ms, wait);
    });
}

function load() {
    const heap = [];
    let turn = 0;
    setInterval(() => {
        turn++;
        for (const until = performance.now() + 1; performance.now() < until;) {
            heap.push("x".repeat(turn % 1000));
        }
        if (heap.length > 50000) {
            heap.length = 0;
        }
    }, 5);
}

// Readings of performance.now() that stand for one moment; a step between two is written down.
function readClocks() {
    let last = null, before = 0, reads = 0, backward = 0;
    const read = () => {
        for (let i = 0; i < 200; i++, reads++) {
            const at = { own: performance.now() * MS, real: Date.now() * MS };
            const after = performance.now() * MS;
            if (at.own < before || after < at.own) {
                backward++;
            }
            before = after;
            if (after - at.own < MS / 5) {
                // the wall clock's own millisecond comes on top of the one that is tolerated
                if (last && Math.abs(at.own - last.own - (at.real - last.real)) > 2 * MS) {
                    fs.writeSync(record, `{"step": [${pair(last)}, ${pair(at)}]}\n`);
                }
                last = at;
            }
        }
    };
    setInterval(read, 2);
    process.on("SIGTERM", () => {
        fs.writeSync(record,
            `{"end": ${pair(now())}, "reads": ${reads}, "backward": ${backward}}\n`);
        process.exit(0);
    });
}

if (isMainThread) {
    new Worker(__filename, { workerData: path });
    repeat("setTimeout", 700, (ms, done) => setTimeout(done, ms));
    repeat("timers/promises", 710, (ms, done) => sleep(ms).then(done));
    repeat("AbortSignal.timeout", 720, (ms, done) => {
        AbortSignal.timeout(ms).addEventListener("abort", done);
        setTimeout(() => {}, ms + 100); // such a signal alone keeps no program alive
    });
    // a server of our own that never answers
    const server = http.createServer(() => {}).listen(`${path}.socket`);
    repeat("http request timeout", 730, (ms, done) => {
        const request = http.get({ socketPath: `${path}.socket`, timeout: ms });
        request.on("timeout", () => request.destroy());
        request.on("error", () => done());
    });
    void server;
    // It counts from the event loop's idea of now when it rang, which is older than ours by what the
    // loop did meanwhile, and by what it did not because it had no CPU.
    const SLACK = 25 * MS;
    let rang = now();
    setInterval(() => {
        const latest = rang.own + 250 * MS;
        wrote("setInterval, 250 ms", rang, Math.max(latest - SLACK, Math.min(now().own, latest)));
        rang = now();
    }, 250);
    load();
    readClocks();
} else {
    repeat("setTimeout in a worker", 740, (ms, done) => setTimeout(done, ms));
    new Worker(`
        const { workerData } = require("worker_threads");
        const fs = require("fs");
        const cell = new Int32Array(new SharedArrayBuffer(4));
        const record = fs.openSync(workerData, "a");
        const now = () => [Number(process.hrtime.bigint()), Date.now() * ${MS}];
        for (;;) {
            const began = now();
            Atomics.wait(cell, 0, 0, 750);
            const due = began[0] + 750 * ${MS};
            fs.writeSync(record, JSON.stringify({ wait: "Atomics.wait", began, due, ended: now() }) + "\\n");
        }
    `, { eval: true, workerData: path });
}
