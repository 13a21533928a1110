// Counts what the warps of a launch do: instructions, by basic block, and accesses to memory, by instruction.
//
// One fiber runs one thread, so that lanes of a warp come one after the other: what they access is kept until their
// block has ended, and then put together by instruction and round of its loops. A warp is taken to diverge no more
// than the branches say: a basic block is issued as often as that of its lanes which runs it most often.
#include "counting.h"

#include <algorithm>
#include <unordered_map>
#include <vector>

namespace {

constexpr int ADDRESS_BITS = 40, SECTOR = 32, LANES = 32, BANKS = 32, BANK_BYTES = 4;

// What lanes of a warp access in one instruction and round.
struct Together { u64 address[LANES]; u32 lanes, bytes, site; Kind kind; };

struct Warp {
    std::vector<u32> most;  // by basic block, of its lanes
    std::unordered_map<u64, Together> accesses;
};

}  // namespace

// Mirrored in counting.py.
struct SiteCounts {
    u64 requests, lanes;                 // of warps, of threads
    u64 sectors, bytes;                  // global: 32-byte sectors that a warp touches, and the bytes it asks for
    u64 wavefronts, needed_wavefronts;   // shared: rounds that the banks take, and that they would without conflicts
    u64 turns;                           // atomic: as often as the same place is changed in one request
};
struct RegionCounts { u64 sectors[3]; };  // read, written, updated; each once a block

struct Counts {
    u32 grid[3];
    std::vector<u32> chosen;  // blocks of the grid
    u32 block = 0;            // the one that runs, as in Thread
    std::vector<Warp> warps;
    std::vector<u64> executed, issued;  // by basic block: of threads, of warps
    std::vector<SiteCounts> sites;
    std::vector<RegionCounts> regions;
};

namespace {

u64 distinct(u64* begin, u64* end) {
    std::sort(begin, end);
    return u64(std::unique(begin, end) - begin);
}

void count_global(SiteCounts& site, const Together& access, std::vector<u64>& touched) {
    u64 sectors[LANES * 2], places[LANES];
    int count = 0, lanes = 0;
    for (int lane = 0; lane < LANES; ++lane) {
        if (!(access.lanes >> lane & 1)) continue;
        const u64 address = places[lanes++] = access.address[lane];
        for (u64 sector = address / SECTOR; sector <= (address + access.bytes - 1) / SECTOR; ++sector)
            sectors[count++] = sector;
    }
    const u64 found = distinct(sectors, sectors + count);
    site.sectors += found;
    touched.insert(touched.end(), sectors, sectors + found);
    std::sort(places, places + lanes);
    u64 end = 0;
    for (int i = 0; i < lanes; ++i) {  // those that overlap count once
        const u64 begin = std::max(places[i], end);
        end = std::max(end, places[i] + access.bytes);
        site.bytes += end - std::min(begin, end);
    }
}

// Words of one bank are read one after the other. 8 bytes a lane are read by half a warp at a time, 16 by a quarter.
void count_shared(SiteCounts& site, const Together& access) {
    const int words = access.bytes > BANK_BYTES ? int(access.bytes) / BANK_BYTES : 1, group = LANES / words;
    for (int first = 0; first < LANES; first += group) {
        u64 found[LANES];
        int count = 0, in_bank[BANKS] = {};
        for (int lane = first; lane < first + group; ++lane)
            for (int word = 0; word < words && access.lanes >> lane & 1; ++word)
                found[count++] = access.address[lane] / BANK_BYTES + u64(word);
        const int end = int(distinct(found, found + count));
        int most = 0;
        for (int i = 0; i < end; ++i) most = std::max(most, ++in_bank[found[i] % BANKS]);
        site.wavefronts += u64(most);
        site.needed_wavefronts += most > 0;
    }
}

u64 most_alike(const Together& access) {
    u64 most = 0;
    for (int lane = 0; lane < LANES; ++lane) {
        u64 alike = 0;
        for (int other = 0; other < LANES && access.lanes >> lane & 1; ++other)
            alike += (access.lanes >> other & 1) && access.address[other] == access.address[lane];
        most = std::max(most, alike);
    }
    return most;
}

void end_block(Counts& counts) {
    std::vector<u64> touched[3];
    for (auto& warp : counts.warps) {
        for (size_t i = 0; i < warp.most.size(); ++i) counts.issued[i] += warp.most[i], warp.most[i] = 0;
        for (const auto& entry : warp.accesses) {
            const Together& access = entry.second;
            SiteCounts& site = counts.sites[access.site];
            ++site.requests;
            site.lanes += u64(__builtin_popcount(access.lanes));
            if (access.kind == update) site.turns += most_alike(access);
            if (access.address[__builtin_ctz(access.lanes)] >> ADDRESS_BITS)
                count_global(site, access, touched[access.kind == store ? 1 : access.kind == update ? 2 : 0]);
            else
                count_shared(site, access);
        }
        warp.accesses.clear();
    }
    for (int kind = 0; kind < 3; ++kind) {
        std::vector<u64>& all = touched[kind];
        all.resize(size_t(distinct(all.data(), all.data() + all.size())));
        for (u64 sector : all) {
            const u64 region = (sector * SECTOR >> ADDRESS_BITS) - 1;
            if (region < counts.regions.size()) ++counts.regions[region].sectors[kind];
        }
    }
}

}  // namespace

extern "C" {

void ptx_count_thread(Counts* counts, Thread* self) {
    const u32 flat = counts->chosen[self->at.block.x], x = counts->grid[0], y = counts->grid[1];
    self->at.grid_size = {x, y, counts->grid[2]};
    self->at.block = {flat % x, flat / x % y, flat / x / y};
    self->block = 1 + flat;
    if (counts->block == self->block) return;
    if (counts->block) end_block(*counts);
    counts->block = self->block;
}

void ptx_count_blocks(Counts* counts, const Thread* self, const u32* times, u32 count) {
    auto& most = counts->warps[self->number / LANES].most;
    for (u32 i = 0; i < count; ++i) {
        counts->executed[i] += times[i];
        most[i] = std::max(most[i], times[i]);
    }
}

void ptx_count_access(
    Counts* counts, const Thread* self, Kind kind, u64 address, u32 bytes, u32 site, u64 round) {
    auto& accesses = counts->warps[self->number / LANES].accesses;
    Together& access = accesses[round * 0x9e3779b97f4a7c15u + site];
    access.address[self->lane] = address;
    access.lanes |= 1u << self->lane;
    access.bytes = bytes, access.site = site, access.kind = kind;
}

// ---- for counting.py

Counts* ptx_counts_new(const u32* grid, u32 threads, u32 blocks, u32 sites, u32 regions) {
    Counts* counts = new Counts;
    std::copy(grid, grid + 3, counts->grid);
    counts->warps.resize((threads + LANES - 1) / LANES);
    for (auto& warp : counts->warps) warp.most.resize(blocks);
    counts->executed.resize(blocks), counts->issued.resize(blocks);
    counts->sites.resize(sites), counts->regions.resize(regions);
    return counts;
}
void ptx_counts_delete(Counts* counts) { delete counts; }

void ptx_counts_choose(Counts* counts, const u32* blocks, u32 count) {
    counts->chosen.assign(blocks, blocks + count);
}

void ptx_counts_read(Counts* counts, u64* executed, u64* issued, SiteCounts* sites, RegionCounts* regions) {
    if (counts->block) end_block(*counts);
    counts->block = 0;
    std::copy(counts->executed.begin(), counts->executed.end(), executed);
    std::copy(counts->issued.begin(), counts->issued.end(), issued);
    std::copy(counts->sites.begin(), counts->sites.end(), sites);
    std::copy(counts->regions.begin(), counts->regions.end(), regions);
}
}
