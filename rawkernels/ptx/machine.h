// What the C++ of a translated kernel calls: memory that is checked, barriers, and operations of a warp.
// translate.py writes those calls; machine.cpp has what is behind them.
#pragma once
#include "arithmetic.h"

struct Machine;  // one launch: its memory, and what was reported

// Of the host build's runtime, which runs a fiber for each CUDA thread.
struct Size3 { u32 x, y, z; };
struct ShimThread { Size3 thread, block, block_size, grid_size; };
struct ShimRequest;
struct ShimKernel {
    void (*call)(void** arguments);
    void* anchor;
    char* dynamic;
};
extern "C" {
const ShimThread* shim_current();
int shim_lane();
void shim_barrier();
u64 shim_exchange(u32 mask, u64 value, int source);
u32 shim_ballot(u32 mask, int predicate);
int shim_launch(const ShimRequest*, const ShimKernel*, void** arguments);
}

// One CUDA thread, from its first instruction to its last.
struct Thread {
    Machine* machine;
    ShimThread at;
    u32 block, number, lane;    // block + 1 in the grid, thread in the block, lane in its warp
    u32 epoch = 0, warp_epoch = 0;  // barriers that it has passed
    explicit Thread(void* machine)
        : machine(static_cast<Machine*>(machine)), at(*shim_current()),
          block(1 + at.block.x + at.grid_size.x * (at.block.y + at.grid_size.y * at.block.z)),
          number(at.thread.x + at.block_size.x * (at.thread.y + at.block_size.y * at.thread.z)), lane(number % 32) {}
};

enum Kind { load, load_nc, store, update };
enum Shuffle { shuffle_idx, shuffle_up, shuffle_down, shuffle_bfly };
struct Shuffled { u32 value; bool inside; };

extern "C" {
// Where the bytes at an address are. After a report they are bytes of nobody, all ones: NaN.
void* ptx_global(Thread*, Kind, u64 address, u32 bytes, u32 site);
void* ptx_shared(Thread*, Kind, u32 address, u32 bytes, u32 site);
void ptx_barrier(Thread*, u32 site);
void ptx_warp_barrier(Thread*, u32 mask, u32 site);
u64 ptx_shuffle(Thread*, Shuffle, u32 value, u32 other, u32 clamp, u32 mask, u32 site);
u32 ptx_ballot(Thread*, bool predicate, u32 mask, u32 site);
void ptx_zero_divisor(Thread*, u32 site);
}

template <class V> inline V at(const void* memory, int index = 0) {
    V value;
    memcpy(&value, static_cast<const char*>(memory) + index * sizeof(V), sizeof(V));
    return value;
}
template <class V> inline void put(void* memory, int index, V value) {
    memcpy(static_cast<char*>(memory) + index * sizeof(V), &value, sizeof(V));
}

inline void* global(Thread& self, Kind kind, u64 address, u32 bytes, u32 site) {
    return ptx_global(&self, kind, address, bytes, site);
}
inline void* shared(Thread& self, Kind kind, u32 address, u32 bytes, u32 site) {
    return ptx_shared(&self, kind, address, bytes, site);
}
inline void barrier(Thread& self, u32 site) { ptx_barrier(&self, site); }
inline void warp_barrier(Thread& self, u32 mask, u32 site) { ptx_warp_barrier(&self, mask, site); }
inline Shuffled shuffle(Thread& self, Shuffle mode, u32 value, u32 other, u32 clamp, u32 mask, u32 site) {
    const u64 got = ptx_shuffle(&self, mode, value, other, clamp, mask, site);
    return {u32(got), got >> 32 != 0};
}
inline u32 ballot(Thread& self, bool predicate, u32 mask, u32 site) {
    return ptx_ballot(&self, predicate, mask, site);
}
template <class V> inline V quotient(Thread& self, V a, V b, u32 site) {
    if (b == 0) return ptx_zero_divisor(&self, site), V(-1);
    return V(-1) < 0 && b == V(-1) ? 0 - a : a / b;  // the processor traps where the quotient overflows
}
template <class V> inline V remainder(Thread& self, V a, V b, u32 site) {
    if (b == 0) return ptx_zero_divisor(&self, site), a;
    return V(-1) < 0 && b == V(-1) ? 0 : a % b;
}

#define ENTRY(name)                                                                         \
    extern "C" int ptx_enter_##name(const ShimRequest* request, void** arguments) {         \
        const ShimKernel kernel = {kernel_##name, nullptr, nullptr};                        \
        return shim_launch(request, &kernel, arguments);                                    \
    }
