// The memory of a launch, checked at each access: bounds, alignment, const, races, what was never written.
//
// Two accesses of different threads are ordered if a barrier of their block lies between them, or, in one warp, a
// barrier of all its lanes. Threads of different blocks are never ordered. Each element of memory that can be written
// has a cell, which keeps who wrote it last and two of those who have read it since: an access that is not ordered
// after them is a race, whatever order the fibers happened to run in. Atomic operations do not race with each other.
#include "machine.h"

#include <stdlib.h>

#include <list>
#include <vector>

namespace {

constexpr int ADDRESS_BITS = 40, SHARED_BITS = 20;  // as __init__.py and translate.py lay them out
constexpr u32 MOST_RECORDS = 64;

enum What : u32 {  // as report.py names them
    out_of_bounds, misaligned, written_const, read_after_write, write_after_write, write_after_read, uninitialised,
    incoherent, absent_lanes, different_calls, absent_source, zero_divisor, unknown_address,
    written_constant
};

struct Stamp {  // of an access; block 0: of nobody
    u32 block, epoch;
    u32 warp_epoch : 19, thread : 10;
    u32 special : 1;  // an atomic operation, or a non-coherent load
    u32 several : 2;  // atomic operations that are not ordered: 1 of one block, 2 of more
};
struct Cell { Stamp write, read[2]; };

struct Region {
    char* memory;
    s64 bytes;
    u64 start;
    u32 granule;  // bytes of a cell
    bool writable;
    Cell* cells;
};

// Lanes of a warp that meet in one operation.
struct WarpCall { u32 mask, arrived, site, left; bool open; };

}  // namespace

// Mirrored in memory.py.
struct Record {
    u32 what, site, count, region, bytes, other_block, other_thread, lanes;
    u32 block[3], thread[3];
    s64 offset;
    u32 shared;
};

struct Machine {
    u32 threads;  // of a block
    std::vector<Region> global, shared;
    std::vector<Record> records;
    std::list<WarpCall> calls[32];  // by warp
    char nobody[64];

    ~Machine() {
        for (auto& region : global) free(region.cells);
        for (auto& region : shared) free(region.cells), free(region.memory);
    }
};

namespace {

Record& report(Thread* self, What what, u32 site) {
    static thread_local Record beyond;
    auto& records = self->machine->records;
    for (auto& record : records)
        if (record.what == what && record.site == site) return ++record.count, beyond;
    if (records.size() >= MOST_RECORDS) return beyond;
    const Size3 block = self->at.block, thread = self->at.thread;
    Record record = {what, site, 1, 0, 0, 0, 0, 0, {block.x, block.y, block.z}, {thread.x, thread.y, thread.z}, 0, 0};
    records.push_back(record);
    return records.back();
}

void* nobody(Thread* self) { return memset(self->machine->nobody, 0xff, sizeof self->machine->nobody); }

Stamp stamp(const Thread& self, bool special) {
    return {self.block, self.epoch, self.warp_epoch, self.number, special, 0};
}

bool ordered(const Stamp& before, const Thread& self) {
    if (before.block != self.block) return before.block == 0;
    if (before.several == 2) return false;
    if (before.epoch < self.epoch) return true;
    const bool same_warp = before.thread / 32 == self.number / 32;
    if (same_warp && before.warp_epoch < self.warp_epoch) return true;
    return before.thread == self.number && !before.several;
}

// The access that this one races with, or null; notes this one.
const Stamp* race(Cell& cell, const Thread& self, Kind kind, What& what) {
    const bool writes = kind == store || kind == update;
    const bool both_atomic = kind == update && cell.write.special;
    if (kind == load_nc && cell.write.block) return what = incoherent, &cell.write;
    if (!both_atomic && !ordered(cell.write, self)) {
        what = writes ? write_after_write : read_after_write;
        return &cell.write;
    }
    if (!writes) {
        for (auto& read : cell.read)  // that something was read as a constant is not forgotten
            if (ordered(read, self)) return read = stamp(self, kind == load_nc || read.special), nullptr;
        return nullptr;  // two that are not ordered are enough
    }
    for (auto& read : cell.read) {
        if (read.block && read.special) return what = written_constant, &read;
        if (!ordered(read, self)) return what = write_after_read, &read;
    }
    Stamp now = stamp(self, kind == update);
    if (both_atomic && !ordered(cell.write, self)) now.several = cell.write.block == self.block ? 1 : 2;
    if (both_atomic && cell.write.several == 2) now.several = 2;
    cell.write = now;
    return nullptr;
}

struct Access { Thread* self; Kind kind; s64 offset; u32 bytes, site, region; bool shared; };

Record& locate(Record& record, const Access& access) {
    record.region = access.region;
    record.offset = access.offset;
    record.bytes = access.bytes;
    record.shared = access.shared;
    return record;
}

void check_races(Region& region, const Access& access) {
    const s64 last = (access.offset + access.bytes - 1) / region.granule;
    for (s64 i = access.offset / region.granule; i <= last; ++i) {
        What what;
        const Stamp* other = race(region.cells[i], *access.self, access.kind, what);
        if (!other) continue;
        const Stamp found = *other;
        Record& record = locate(report(access.self, what, access.site), access);
        record.other_block = found.block - 1;
        record.other_thread = found.thread;
        return;
    }
}

// Whether the access may be carried out.
bool check_place(const Region& region, const Access& access, u64 address) {
    if (address % access.bytes) locate(report(access.self, misaligned, access.site), access);
    if (access.offset >= 0 && access.offset + access.bytes <= region.bytes) return true;
    locate(report(access.self, out_of_bounds, access.site), access);
    return false;
}

u32 lanes_there(const Thread& self) {
    const u32 first = self.number / 32 * 32, count = self.machine->threads - first;
    return count >= 32 ? ~0u : (1u << count) - 1;
}

WarpCall& arrive(Thread* self, u32 mask, u32 site) {
    auto& calls = self->machine->calls[self->number / 32];
    WarpCall* call = nullptr;
    for (auto& other : calls)
        if (other.open && other.mask == mask) call = &other;
    if (!call) call = &calls.emplace_back(WarpCall{mask, 0, site, 0, true});
    if (call->site != site) report(self, different_calls, site).lanes = call->arrived;
    call->arrived |= 1u << self->lane;
    return *call;
}

// After the lanes were let go: those of the mask that never came have returned instead.
u32 leave(Thread* self, WarpCall& call) {
    const u32 arrived = call.arrived, absent = call.mask & lanes_there(*self) & ~arrived;
    if (call.open && absent) report(self, absent_lanes, call.site).lanes = absent;
    call.open = false;
    if (++call.left == u32(__builtin_popcount(arrived)))
        self->machine->calls[self->number / 32].remove_if([&](WarpCall& other) { return &other == &call; });
    return arrived;
}

}  // namespace

extern "C" {

void* ptx_global(Thread* self, Kind kind, u64 address, u32 bytes, u32 site) {
    auto& regions = self->machine->global;
    const u64 number = (address >> ADDRESS_BITS) - 1;
    if (number >= regions.size()) {
        Record& record = report(self, unknown_address, site);
        record.offset = s64(address), record.bytes = bytes;
        return nobody(self);
    }
    Region& region = regions[number];
    const Access access = {self, kind, s64(address - region.start), bytes, site, u32(number), false};
    if (!check_place(region, access, address)) return nobody(self);
    const bool writes = kind == store || kind == update;
    if (writes && !region.writable) {
        locate(report(self, written_const, site), access);
        return nobody(self);
    }
    if (!region.writable) return region.memory + access.offset;
    check_races(region, access);
    return region.memory + access.offset;
}

void* ptx_shared(Thread* self, Kind kind, u32 address, u32 bytes, u32 site) {
    auto& regions = self->machine->shared;
    const u32 number = (address >> SHARED_BITS) - 1;
    if (number >= regions.size()) {
        Record& record = report(self, unknown_address, site);
        record.offset = address, record.bytes = bytes, record.shared = 1;
        return nobody(self);
    }
    Region& region = regions[number];
    const Access access = {self, kind, s64(address) - s64(region.start), bytes, site, number, true};
    if (!check_place(region, access, address)) return nobody(self);
    const s64 last = (access.offset + bytes - 1) / region.granule;
    for (s64 i = access.offset / region.granule; i <= last; ++i) {
        Cell& cell = region.cells[i];
        // What other blocks did is of their own memory.
        if (cell.write.block != self->block) {
            for (auto& read : cell.read) read.block = read.block == self->block ? read.block : 0;
            cell.write.block = 0;
            if (kind == load || kind == update) {
                locate(report(self, uninitialised, site), access);
                return nobody(self);
            }
        }
    }
    check_races(region, access);
    return region.memory + access.offset;
}

void ptx_barrier(Thread* self, u32) {
    shim_barrier();
    ++self->epoch;
}

void ptx_warp_barrier(Thread* self, u32 mask, u32 site) {
    WarpCall& call = arrive(self, mask, site);
    shim_exchange(mask, 0, int(self->lane));
    leave(self, call);
    // One of a part of the lanes orders only those: it is not followed.
    if ((mask & lanes_there(*self)) == lanes_there(*self)) ++self->warp_epoch;
}

u64 ptx_shuffle(Thread* self, Shuffle mode, u32 value, u32 other, u32 clamp, u32 mask, u32 site) {
    const int lane = int(self->lane), by = int(other & 31), segment = int(clamp >> 8 & 31);
    const int limit = (lane & segment) | (int(clamp & 31) & ~segment);
    const int source = mode == shuffle_up     ? lane - by
                       : mode == shuffle_down ? lane + by
                       : mode == shuffle_bfly ? lane ^ by
                                              : (lane & segment) | (by & ~segment);
    const bool inside = mode == shuffle_up ? source >= limit : source <= limit;
    const int from = inside ? source : lane;
    WarpCall& call = arrive(self, mask, site);
    const u64 got = shim_exchange(mask, value, from);
    if (!(leave(self, call) >> from & 1)) report(self, absent_source, site).lanes = 1u << from;
    return u32(got) | u64(inside) << 32;
}

u32 ptx_ballot(Thread* self, bool predicate, u32 mask, u32 site) {
    WarpCall& call = arrive(self, mask, site);
    const u32 votes = shim_ballot(mask, predicate);
    leave(self, call);
    return votes;
}

void ptx_zero_divisor(Thread* self, u32 site) { report(self, zero_divisor, site); }

// ---- for memory.py

Machine* ptx_new(u32 threads) {
    Machine* machine = new Machine;
    machine->threads = threads;
    return machine;
}
void ptx_delete(Machine* machine) { delete machine; }

void ptx_add_global(Machine* machine, char* memory, u64 bytes, u64 start, u32 granule, int writable) {
    auto* cells = writable ? static_cast<Cell*>(calloc(bytes / granule + 1, sizeof(Cell))) : nullptr;
    machine->global.push_back({memory, s64(bytes), start, granule, writable != 0, cells});
}

void ptx_add_shared(Machine* machine, u64 bytes, u32 granule) {
    auto* cells = static_cast<Cell*>(calloc(bytes / granule + 1, sizeof(Cell)));
    auto* memory = static_cast<char*>(malloc(bytes + 1));
    const u64 start = u64(machine->shared.size() + 1) << SHARED_BITS;
    machine->shared.push_back({memory, s64(bytes), start, granule, true, cells});
}

u32 ptx_records(const Machine* machine, Record* records, u32 most) {
    u32 count = 0;
    for (const auto& record : machine->records)
        if (count < most) records[count++] = record;
    return count;
}
}
