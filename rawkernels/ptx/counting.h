// What the C++ of a kernel that is counted calls besides: how often each basic block runs, and what a warp's lanes
// access together. translate.py writes those calls; counting.cpp has what is behind them.
#pragma once
#include "machine.h"

struct Counts;  // of one launch

// A loop that a thread is in. The key differs from round to round, and is the same for all threads in the same round
// of the same rounds of the loops around it: lanes that access memory in one instruction under one key do so together.
struct Loop {
    u64 key = 1, outer = 0;
    u32 round = 0;
};
inline void next_round(Loop& loop, const Loop& around) {
    loop.round = loop.outer == around.key ? loop.round + 1 : 0;
    loop.outer = around.key;
    u64 key = (around.key ^ loop.round) * 0x9e3779b97f4a7c15u;
    key = (key ^ key >> 32) * 0xd6e8feb86659fd93u;
    loop.key = key ^ key >> 32;
}

extern "C" {
void ptx_count_thread(Counts*, Thread*);  // which it is: a launch of some blocks is told which ones
void ptx_count_blocks(Counts*, const Thread*, const u32* times, u32 count);
void ptx_count_access(Counts*, const Thread*, Kind, u64 address, u32 bytes, u32 site, u64 round);
}

// One thread of a kernel with so many basic blocks and loops; loop 0 is the kernel itself.
template <int BLOCKS, int LOOPS> struct Counter {
    Thread& self;
    Counts* counts;
    u32 times[BLOCKS] = {};
    Loop loops[LOOPS];
    Counter(Thread& self, void* counts) : self(self), counts(static_cast<Counts*>(counts)) {
        ptx_count_thread(this->counts, &self);
    }
    ~Counter() { ptx_count_blocks(counts, &self, times, BLOCKS); }
    u64 noted(Kind kind, u64 address, u32 bytes, u32 site, int loop) {
        ptx_count_access(counts, &self, kind, address, bytes, site, loops[loop].key);
        return address;
    }
};
