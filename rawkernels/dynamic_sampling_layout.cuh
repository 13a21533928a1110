#pragma once
// dynamic_sampling: which pixel a thread has, and where the samples of a row lie. What all threads
// divide by, sizes of the image, comes with a factor (with wide indices it is divided by). Included by dynamic_sampling.cu, whose names it uses.

// Division of numbers from 0 to 2^31 - 1 by one that is known before the launch: a product and a shift.
struct Divisor {
    INDEX value;
    unsigned factor;
    int shift;

    __device__ __forceinline__ INDEX divide(INDEX number) const {
        if constexpr (sizeof(INDEX) > sizeof(int)) return number / value;
        return static_cast<INDEX>(static_cast<unsigned long long>(number) * factor >> shift);
    }
};

// The pixels of some images, one for each thread along the first axis of the grid.
struct Area {
    INDEX pixels;
    Divisor plane, width;
};

struct Pixel {
    INDEX n, at;  // the image, and the offset in its plane
    int y, x;

    __device__ __forceinline__ bool find(const Area& area) {
        const INDEX flat = thread_index();
        if (flat >= area.pixels) return false;
        n = area.plane.divide(flat);
        at = flat - n * area.plane.value;
        const INDEX row = area.width.divide(at);
        y = row;
        x = at - row * area.width.value;
        return true;
    }
};

// Pixels of x along a row, a sample's step apart, from (y, x) on; of TILE the first `count` are wanted. With a margin
// all lie inside, at distances that the compiler knows; else those outside, and those not wanted, read as zero.
struct Row {
    INDEX at[MARGIN ? 1 : TILE];

    __device__ __forceinline__ Row(const Geometry& geo, int y, int x, int count) {
        if (MARGIN) {
            at[0] = geo.place(y, x);
            return;
        }
#pragma unroll
        for (int k = 0; k < (MARGIN ? 1 : TILE); ++k)
            at[k] = k < count ? geo.pixel(y, x + k * geo.step_x()) : INDEX(-1);
    }
    // Offset of pixel k in its plane, or -1 outside.
    __device__ __forceinline__ INDEX place(int k) const { return MARGIN ? at[0] + k * STEP : at[MARGIN ? 0 : k]; }
    template <class V>
    __device__ __forceinline__ ACC of(const V* plane, int k) const {
        if (MARGIN) return element(plane + at[0] + k * STEP);
        const INDEX place = at[MARGIN ? 0 : k];
        return place >= 0 ? element(plane + place) : ACC(0);
    }
};

// The place of a tap in its kernel.
struct Tap {
    int a, b;

    __device__ __forceinline__ Tap(int t, const Geometry& geo)
        : a(t == 0 ? 0 : t / geo.kernel_w), b(t - a * geo.kernel_w) {}
    __device__ __forceinline__ void next(const Geometry& geo) {
        if (++b < geo.kernel_w) return;
        b = 0;
        ++a;
    }
};

// The outputs along one axis whose samples, one after the other, are centred on one place. What is left of dividing by
// the stride is carried from sample to sample.
struct Readers {
    int output, rest, stride, output_step, rest_step;

    // `scaled` is the place less the offset of the first sample, `step` the distance of the samples.
    __device__ __forceinline__ Readers(int scaled, int step, int stride) : stride(stride) {
        if (stride == 1) {
            output = scaled;
            output_step = step;
            rest = rest_step = 0;
            return;
        }
        output = scaled >= 0 ? scaled / stride : -1 - (-1 - scaled) / stride;
        rest = scaled - output * stride;
        output_step = step / stride;
        rest_step = step - output_step * stride;
    }
    __device__ __forceinline__ void next() {
        output -= output_step;
        rest -= rest_step;
        if (rest >= 0) return;
        rest += stride;
        --output;
    }
    __device__ __forceinline__ bool among(int count) const { return rest == 0 && output >= 0 && output < count; }
};
