#pragma once
// The units of displaced.cu, the tile of a block, and what a unit reads there.

struct Place {
    int y, x;    // whole pixels
    ACC ly, lx;  // and the rest: both NaN where a displacement is
};

// Whole pixels and the rest of one displacement. What lies so far that nothing is read moves to the nearest such place.
__device__ __forceinline__ int split(ACC move, int size, ACC& rest) {
    if (move > size + 1) move = size + 1;
    if (move < -size - 1) move = -size - 1;
    const ACC whole = floor(move);
    rest = move - whole;
    return static_cast<int>(whole);
}

// The units as they are given: weight (outputs, inputs, per_pair) and displacement (outputs, inputs, per_pair, 2). Sums
// are made for targets, over sources: outputs and inputs, or, where it is `turned`, inputs and outputs, and then the
// displacements are the opposite ones.
struct Units {
    const T* weight;
    const T* displacement;
    int targets, sources, per_pair;
    bool turned;

    __device__ __forceinline__ INDEX index(INDEX target, INDEX source, int g) const {
        return (turned ? source * targets + target : target * sources + source) * per_pair + g;
    }
    __device__ __forceinline__ Place place(INDEX unit, int height, int width) const {
        const ACC sign = turned ? ACC(-1) : ACC(1);
        const ACC y = sign * load_coordinate(displacement + 2 * unit);
        const ACC x = sign * load_coordinate(displacement + 2 * unit + 1);
        Place place = {0, 0, y + x, y + x};
        if (y == y && x == x) {
            place.y = split(y, height, place.ly);
            place.x = split(x, width, place.lx);
        }
        return place;
    }
};

// Which source, and which unit of it, a lane has as a warp goes through units WARP at a time. Without dividing integers:
// (n + 0.5) / m is at least 0.5 / m away from a whole number, so that rounding does not lead across one.
struct Cursor {
    int source, g, per_pair, jump;
    __device__ __forceinline__ explicit Cursor(int per_pair) : per_pair(per_pair) {
        const int lane = threadIdx.x % WARP;
        source = static_cast<int>((lane + 0.5f) / per_pair);
        g = lane - source * per_pair;
        jump = static_cast<int>((WARP + 0.5f) / per_pair);
    }
    __device__ __forceinline__ void advance() {
        source += jump;
        g += WARP - jump * per_pair;
        if (g < per_pair) return;
        g -= per_pair;
        ++source;
    }
};

// ---- tiles in shared memory ----------------------------------------------------------------------------------------

// Shared memory of a block holds sources with their apron, and for each warp a strip: one row of the patches of its lanes,
// and the pixel after it. 24 KiB leave room for several blocks on a processor.
constexpr int STRIP_PITCH = TILE_COLUMNS + 1, STRIP = LANES_DOWN * STRIP_PITCH;
constexpr int SHARED = (sizeof(ACC) == 8 ? 32 : 24) * 1024 / sizeof(ACC), CAPACITY = SHARED - WARPS * STRIP;

// Of a tile with its apron. A line has no rows above and below: what units read there is 0.
__device__ constexpr int rows_with(int reach) { return LINE ? 1 : TILE_ROWS + 2 * reach + 1; }
__device__ constexpr int columns_with(int reach) { return TILE_COLUMNS + 2 * reach + 1; }
__device__ constexpr int pitch_with(int reach) { return columns_with(reach) | 1; }
__device__ constexpr int widest_apron() {
    int reach = 0;
    while (rows_with(reach + 1) * pitch_with(reach + 1) <= CAPACITY) ++reach;
    return reach;
}
constexpr int MOST = widest_apron();

struct Tile {
    int height, width;          // of an image
    int image, row, column;     // which one, and where the tile begins in it
    int up, left;               // width of the apron
    int together;               // so many channels fit into shared memory
    bool beyond;                // whether a unit of the warp leads beyond the apron

    __device__ __forceinline__ Tile(int height, int width) : height(height), width(width) {}
    __device__ __forceinline__ bool inside(int y, int x) const { return y >= 0 && y < height && x >= 0 && x < width; }
    __device__ __forceinline__ int rows() const { return rows_with(up); }
    __device__ __forceinline__ int columns() const { return columns_with(left); }
    __device__ __forceinline__ int pitch() const { return pitch_with(left); }
    __device__ __forceinline__ INDEX plane() const { return static_cast<INDEX>(height) * width; }
    __device__ __forceinline__ bool near(const Place& place) const {
        return abs(place.x) <= left && (LINE || abs(place.y) <= up);
    }

    // Tiles are numbered along rows, then down, then through images. A few threads divide for all.
    __device__ __forceinline__ void find(INDEX which) {
        __syncthreads();
        if (threadIdx.x < 3) {
            const int x = take(which, (width + TILE_COLUMNS - 1) / TILE_COLUMNS);
            const int y = take(which, (height + TILE_ROWS - 1) / TILE_ROWS);
            found()[threadIdx.x] = threadIdx.x == 0 ? which : threadIdx.x == 1 ? TILE_ROWS * y : TILE_COLUMNS * x;
        }
        __syncthreads();
        recall();
    }

    // Where the tile begins, once more: what is read after a barrier is not kept in registers until then, nor the places of
    // all the pixels of a patch, for which there is no room.
    __device__ __forceinline__ void recall() {
        image = found()[0];
        row = found()[1];
        column = found()[2];
    }
    static __device__ __forceinline__ int (&found())[3] {
        __shared__ int place[3];
        return place;
    }

    // An apron as wide as the units of this block lead, those left out that lead beyond the widest; `target` is that
    // of the warp.
    __device__ __forceinline__ void find_apron(const Units& units, int target, int begin, int end) {
        __shared__ int found[3][WARPS];
        int y = 0, x = 0;
        beyond = false;
        for (Cursor at(units.per_pair); target < units.targets && at.source < end - begin; at.advance()) {
            const Place place = units.place(units.index(target, begin + at.source, at.g), height, width);
            const bool fits = abs(place.x) <= MOST && (LINE || abs(place.y) <= MOST);
            beyond = beyond || !fits;
            if (!fits) continue;
            y = max(y, LINE ? 0 : abs(place.y));
            x = max(x, abs(place.x));
        }
        beyond = __any_sync(ALL_LANES, beyond);
#pragma unroll
        for (int distance = 1; distance < WARP; distance *= 2) {
            y = max(y, __shfl_xor_sync(ALL_LANES, y, distance));
            x = max(x, __shfl_xor_sync(ALL_LANES, x, distance));
        }
        if (threadIdx.x % WARP == 0) {
            found[0][threadIdx.x / WARP] = y;
            found[1][threadIdx.x / WARP] = x;
        }
        __syncthreads();
        up = left = 0;
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) {
            up = max(up, found[0][warp]);
            left = max(left, found[1][warp]);
        }
        if (threadIdx.x == 0) found[2][0] = min(end - begin, CAPACITY / (rows() * pitch()));
        __syncthreads();
        together = found[2][0];
    }
};

// Copy `count` channels of an image, from `channel` on, with apron. A warp copies every WARPS-th row, two rows and two
// stretches of columns at a time, so that four loads are on their way.
template <class In>
__device__ __forceinline__ void stage(const In* __restrict__ image, INDEX channel, int count, const Tile& tile, ACC* held) {
    constexpr int BATCH = 2;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, lines = count * tile.rows();
    const int top = tile.row - tile.up, bottom = top + tile.rows();
    const INDEX step = LINE ? WARPS * tile.plane() : static_cast<INDEX>(WARPS) * tile.width;
    const INDEX next_channel = tile.plane() - static_cast<INDEX>(tile.rows()) * tile.width;
    __syncthreads();
    for (int column = lane; column < tile.columns(); column += BATCH * WARP) {
        const int x = tile.column - tile.left + column;
        const bool second = column + WARP < tile.columns();
        const bool inside[BATCH] = {x >= 0 && x < tile.width, second && x + WARP >= 0 && x + WARP < tile.width};
        int y = LINE ? 0 : top + warp;
        INDEX from = (channel + (LINE ? warp : 0)) * tile.plane() + static_cast<INDEX>(y) * tile.width + x;
        ACC* to = held + warp * tile.pitch() + column;
        for (int line = warp; line < lines; line += BATCH * WARPS) {
            ACC value[BATCH][BATCH] = {};
#pragma unroll
            for (int i = 0; i < BATCH; ++i) {
                if (line + i * WARPS < lines && y >= 0 && y < tile.height) {
                    if (inside[0]) value[i][0] = read(image + from);
                    if (inside[1]) value[i][1] = read(image + from + WARP);
                }
                from += step;
                if (LINE) continue;
                y += WARPS;
                if (y < bottom) continue;
                y -= tile.rows();
                from += next_channel;
            }
#pragma unroll
            for (int i = 0; i < BATCH; ++i, to += WARPS * tile.pitch()) {
                if (line + i * WARPS >= lines) break;
                to[0] = value[i][0];
                if (second) to[WARP] = value[i][1];
            }
        }
    }
    __syncthreads();
}

// ---- what a unit reads ---------------------------------------------------------------------------------------------

// Where the patch of a lane begins in its tile.
__device__ __forceinline__ int lane_row() { return threadIdx.x % WARP / LANES_ACROSS * PATCH_ROWS; }
__device__ __forceinline__ int lane_column() { return threadIdx.x % WARP % LANES_ACROSS * PATCH_COLUMNS; }

__device__ __forceinline__ int strip_start() { return lane_row() / PATCH_ROWS * STRIP_PITCH + lane_column(); }

// The pixels of a row that a patch needs, and the way to the next row: from shared memory or, for units that lead beyond
// the apron, from the image.
struct NearRows {
    const ACC* line;
    int pitch;
    __device__ __forceinline__ void next(ACC (&row)[PATCH_COLUMNS + 1]) {
#pragma unroll
        for (int j = 0; j <= PATCH_COLUMNS; ++j) row[j] = line[j];
        line += pitch;
    }
};

// Where a unit leads that belongs to source number `source` of those in shared memory: `at` is how far on from the patch
// of a lane, or -1, where that is beyond the apron.
struct __align__(16) Lead {
    int at, y, x, source;
};

__device__ __forceinline__ Lead lead_to(const Place& place, int source, const Tile& tile) {
    const int row = LINE ? source : source * tile.rows() + tile.up + place.y;
    const int at = tile.near(place) ? row * tile.pitch() + tile.left + place.x : -1;
    return {at, place.y, place.x, source};
}

// Lanes together read a row of all their patches, by way of the strip of their warp.
template <class In>
struct FarRows {
    const In* image;  // the first of the sources that leads count from
    const Tile& tile;
    const Lead& lead;  // in shared memory
    ACC* strip;
    int row = 0;
    __device__ __forceinline__ void next(ACC (&pixels)[PATCH_COLUMNS + 1]) {
        __syncwarp();
#pragma unroll 1
        for (int item = threadIdx.x % WARP; item < STRIP; item += WARP) {
            const int y = LINE ? 0 : tile.row + lead.y + row + item / STRIP_PITCH * PATCH_ROWS;
            const int x = tile.column + lead.x + item % STRIP_PITCH;
            const INDEX line = static_cast<INDEX>(lead.source) * tile.height + y;
            strip[item] = tile.inside(y, x) ? read(image + line * tile.width + x) : ACC(0);
        }
        __syncwarp();
#pragma unroll
        for (int j = 0; j <= PATCH_COLUMNS; ++j) pixels[j] = strip[strip_start() + j];
        ++row;
    }
};

// sum += upper*between(row) + lower*between(row + 1), where between is left*pixel + right*next along a row.
struct __align__(16) Factors {
    ACC left, right, upper, lower;
};

// Where the unit is not finite, no sum will be.
__device__ __forceinline__ Factors make_factors(ACC weight, const Place& place) {
    const ACC odd = weight + place.ly;
    const ACC right = odd - odd == 0 ? place.lx : odd - odd;
    Factors made = {1 - right, right, weight * (1 - place.ly), weight * place.ly};
    if (LINE) {  // one of the two rows is the line itself, if any
        if (place.y == -1) made.upper = made.lower;
        if (place.y != 0 && place.y != -1) made.upper = 0;
    }
    return made;
}

// ---- patches and memory --------------------------------------------------------------------------------------------

// Lanes have patches, but neighbouring lanes shall read and write neighbouring pixels: rows of patches go through strips.

// Pixel number `number` of a lane, in row `i` of the patches: where it lies in the strip, and in the image.
struct StripPixel {
    int at, y, x;
    __device__ __forceinline__ StripPixel(int number, int i, const Tile& tile) {
        const int item = threadIdx.x % WARP + number * WARP;
        const int down = item / TILE_COLUMNS, across = item % TILE_COLUMNS;
        at = down * STRIP_PITCH + across;
        y = tile.row + down * PATCH_ROWS + i;
        x = tile.column + across;
    }
};
