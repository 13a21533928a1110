// dynamic_sampling: a kernel for every output pixel, whole (conv) or in two factors over sampled regions (sampling).
//
//   conv      x (N,C,H,W)  weight (N,O,C,kh,kw,Ho,Wo)  y (N,O,Ho,Wo):  y[o,p] = sum over (c,a,b) of weight * x
//   sampling  channel_kernel U (N,O,C,Ho,Wo)  spatial_kernel V (N,O,kh,kw,Ho,Wo)
//             sample_attention (N,O,S,S,Ho,Wo) and position_attention (N,O,kh,kw,H,W), or absent
//             z[s,o,p] = As[o,s,p] * (Ap[o,centre,q] * sum_c U[o,c,p] x[c,q] + sum_ab V'[o,a,b,p] Ap[o,a,b,q] X1(q + ab))
//
// Here q = p * stride + offset of sample s, X1 is the sum of x over channels, made once by channel_sum, and V' is V with
// kernel_residual / C added to the centre. y is the sum, the maximum or the stack of z over the S*S samples.
//
// Without attention and with "sum" the samples of a region become one, of the box sums of x: two sums along an axis
// (axis_sum) on an image with a margin for the taps, then everything else with S = 1.
//
// The usual sizes of S, with attention and "sum", get a program of their own. There the image has a margin as wide as
// samples and taps reach, so that nothing is outside and the pixels of a row of samples are at distances that the
// compiler knows; and what taps see, Ap X1, is multiplied out once for all regions (see).
//
// How work is laid out. Consecutive threads take consecutive pixels. In the forward pass a thread makes one pixel of
// OUTPUTS output channels and keeps the sums over channels of TILE samples for each in registers: a value of U serves
// TILE multiply-adds, a value of x OUTPUTS of them. The warps of a block share its samples, or with one sample its
// channels. Sums over samples and output channels in gradients are gathers; nothing is atomic: equal inputs, equal bits.
//
// Costs per output and pixel of the forward pass, k = 3, C channels, with a margin:
//   memory      4 (C + 9) bytes of U and V, 4 S^2 of As, 40 of Ap and Ap X1; x comes from the caches
//   arithmetic  S^2 (C + 9 + 3) instructions, most of them multiply-adds (whole kernels would take 9 S^2 C)
//   loads       S^2 / TILE (C + 9) of U and V, S^2 C / OUTPUTS of x, 11 S^2 of Ap, Ap X1 and As
// With S = 1 memory is the bound, at S = 9 arithmetic and the loads, about as many cycles each.
//
// Outside the image x is 0, and that zero takes part in products: an infinite kernel value there gives NaN. Of infinities
// the factors and box sums may make NaN where whole kernels give infinities, or the other way round: what is not finite
// is summed up again whole (dynamic_sampling_whole.cuh). What is finite in factors is finite whole.
//
// Constants from the Python side (dynamic_sampling.py explains the choice):
//   SAMPLES  S, or 0 for any, which have tiles of four;  STEP  with a margin the horizontal distance of samples, else 0
//   OUTPUTS  output channels of a thread in the forward pass;  CHANNELS  channels of a thread in the gathers
//   FUSE     0: sum, 1: max, 2: stack
#ifndef FUSE
#define SAMPLES 9
#define STEP 2
#define OUTPUTS 8
#define CHANNELS 16
#define FUSE 0
#endif
#include "common.cuh"

constexpr bool MARGIN = STEP > 0;
constexpr int TILE = SAMPLES > 0 ? SAMPLES : 4;                   // samples of a row whose sums a thread keeps
constexpr int WARPS = SAMPLES > 1 && SAMPLES < 4 ? SAMPLES : 4;   // of a block in the forward pass
constexpr int FEWER = sizeof(ACC) == 8 ? 2 : 4;                    // outputs of a thread that has many channels too
// That an SM should hold: fewer where sizes that the compiler does not know, and wide indices, take registers, and
// where the code for an architecture needs more of them.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ > 900
constexpr int BLOCKS = 2;
#else
constexpr int BLOCKS = 4 - (SAMPLES == 0) - (sizeof(INDEX) > 4);
#endif
constexpr int TAPS = 9, ROWS = FEWER;                               // taps and pixels of a thread in the gradients

// Where the first of `parts` equal shares ends, the second begins, ...
__device__ __forceinline__ int share(int count, int part, int parts) {
    return static_cast<int>(static_cast<long long>(count) * part / parts);
}

struct Geometry {
    int channels, outputs;
    int height, width;          // of x
    int out_height, out_width;  // of y
    int kernel_h, kernel_w, samples;
    int sample_y, sample_x, dilation_y, dilation_x, stride_y, stride_x;
    int lead_y, lead_x;  // from the first pixel of x to that on which the samples of the first output are centred
    ACC kernel_residual, attention_residual;  // 1/C and 1, or 0

    __device__ __forceinline__ INDEX x_plane() const { return static_cast<INDEX>(height) * width; }
    __device__ __forceinline__ INDEX y_plane() const { return static_cast<INDEX>(out_height) * out_width; }
    __device__ __forceinline__ int taps() const { return kernel_h * kernel_w; }
    __device__ __forceinline__ int centre() const { return (kernel_h * kernel_w) / 2; }
    __device__ __forceinline__ int regions() const { return samples * samples; }
    // What the compiler may know; not of the image without its margin.
    __device__ __forceinline__ int sample_count() const { return SAMPLES > 0 ? SAMPLES : samples; }
    __device__ __forceinline__ int step_x() const { return STEP > 0 ? STEP : sample_x; }
    // From an output times the stride to the centre of the sampled region in row i, column j.
    __device__ __forceinline__ int offset_y(int i) const { return (i - (samples - 1) / 2) * sample_y + lead_y; }
    __device__ __forceinline__ int offset_x(int j) const { return (j - (samples - 1) / 2) * sample_x + lead_x; }
    // From the centre of a region to tap (a, b).
    __device__ __forceinline__ int tap_y(int a) const { return (a - kernel_h / 2) * dilation_y; }
    __device__ __forceinline__ int tap_x(int b) const { return (b - kernel_w / 2) * dilation_x; }
    // That of the image itself where this one has a margin of `lead`, or is one of box sums with such a margin.
    __device__ __forceinline__ Geometry of_plain(int plain_samples) const {
        Geometry plain = *this;
        plain.height -= 2 * lead_y;
        plain.width -= 2 * lead_x;
        plain.lead_y = plain.lead_x = 0;
        plain.samples = plain_samples;
        return plain;
    }
    __device__ __forceinline__ bool inside(int y, int x) const { return y >= 0 && y < height && x >= 0 && x < width; }
    // Offset of a pixel of x in its plane, or -1 outside.
    __device__ __forceinline__ INDEX pixel(int y, int x) const {
        return inside(y, x) ? static_cast<INDEX>(y) * width + x : INDEX(-1);
    }
    // The same in an image with a margin, where nothing is outside.
    __device__ __forceinline__ INDEX place(int y, int x) const { return static_cast<INDEX>(y) * width + x; }
};

struct Arrays {
    const T *x, *channel_kernel, *spatial_kernel, *sample_attention, *position_attention;
    const ACC* seen;  // X1, (N,H,W); in programs with a margin and position_attention Ap X1 and, last, Ap of the centre
};

// What an image with a margin or box sums was made of: x itself, and how many samples a region has.
struct Plain {
    const T* x;
    int samples;
};

template <class V>
__device__ __forceinline__ ACC element(const V* address) {
    if constexpr (sizeof(V) == sizeof(ACC)) return *address;
    else return load(address);
}

__device__ __forceinline__ ACC at_or_zero(const T* plane, INDEX at) {
    return at >= 0 ? load(plane + at) : ACC(0);
}

// One value of each of `count` planes, or zeros.
template <int COUNT>
__device__ __forceinline__ void load_planes(ACC (&value)[COUNT], const T* from, INDEX plane, int count) {
    if (count >= COUNT) {
#pragma unroll
        for (int c = 0; c < COUNT; ++c, from += plane) value[c] = load(from);
        return;
    }
#pragma unroll
    for (int c = 0; c < COUNT; ++c, from += plane) value[c] = c < count ? load(from) : ACC(0);
}

__device__ __forceinline__ ACC total_at(const Arrays& in, INDEX n, int y, int x, const Geometry& geo) {
    const INDEX at = geo.pixel(y, x);
    return at >= 0 ? in.seen[n * geo.x_plane() + at] : ACC(0);
}

// As of sample s, for one output channel (no = n * outputs + o) and pixel p.
__device__ __forceinline__ ACC by_sample(const Arrays& in, INDEX no, int s, INDEX p, const Geometry& geo) {
    if (!in.sample_attention) return ACC(1);
    return load(in.sample_attention + (no * geo.regions() + s) * geo.y_plane() + p) + geo.attention_residual;
}

// Ap of tap t where a region is centred on `at` (-1: outside the image).
__device__ __forceinline__ ACC by_position(const Arrays& in, INDEX no, int t, INDEX at, const Geometry& geo) {
    if (!in.position_attention) return ACC(1);
    return at_or_zero(in.position_attention + (no * geo.taps() + t) * geo.x_plane(), at) + geo.attention_residual;
}

// V', the spatial kernel with the residual on its centre.
__device__ __forceinline__ ACC tap_weight(const Arrays& in, INDEX no, int t, INDEX p, const Geometry& geo) {
    const ACC value = load(in.spatial_kernel + (no * geo.taps() + t) * geo.y_plane() + p);
    return t == geo.centre() ? value + geo.kernel_residual : value;
}

// The plane of sample s of an output in a stack.
__device__ __forceinline__ INDEX stacked(INDEX n, INDEX no, int s, const Geometry& geo) {
    return ((n * geo.regions() + s) * geo.outputs + (no - n * geo.outputs)) * geo.y_plane();
}

// What comes back to sample s of an output; to all samples the same where they are not stacked.
__device__ __forceinline__ ACC gradient_at(
    const T* __restrict__ grad_output, INDEX n, INDEX no, int s, INDEX p, const Geometry& geo) {
    return load(grad_output + (FUSE == 2 ? stacked(n, no, s, geo) : no * geo.y_plane()) + p);
}

// The weight that sample s of an output has in the gradients: grad_output * As.
__device__ __forceinline__ ACC sample_weight(
    const T* __restrict__ grad_output, const Arrays& in, INDEX n, INDEX no, int s, INDEX p, const Geometry& geo) {
    return gradient_at(grad_output, n, no, s, p, geo) * by_sample(in, no, s, p, geo);
}

// Whether sample s has a part in an output.
__device__ __forceinline__ bool takes_part(const int* __restrict__ largest, INDEX no, int s, INDEX p, INDEX y_plane) {
#if FUSE == 1
    return largest[no * y_plane + p] == s;
#else
    return true;
#endif
}

#include "dynamic_sampling_layout.cuh"
#include "dynamic_sampling_whole.cuh"
#include "dynamic_sampling_regions.cuh"
#include "dynamic_sampling_grad.cuh"
#include "dynamic_sampling_gather.cuh"
#include "dynamic_sampling_conv.cuh"

// The kernels. `pixels` and what follows it are those of Area, of which a thread has one; channels, taps or output
// channels are along the other axes of the grid.

// What kernels are given, as records. The launcher compares arguments with parameters as they are written here: hence
// these are plain numbers, and spelled out.
#define GEOMETRY                                                                                               \
    {channels, outputs,  height,     width,      out_height, out_width, kernel_h, kernel_w, samples,           \
     sample_y, sample_x, dilation_y, dilation_x, stride_y,   stride_x,  lead_y,   lead_x,   kernel_residual,   \
     attention_residual}
#define AREA {pixels, {area_plane, plane_factor, plane_shift}, {area_width, width_factor, width_shift}}
#define ARRAYS {x, channel_kernel, spatial_kernel, sample_attention, position_attention, seen}

// X1, the sum of x over channels, and x itself with a margin, where `placed` is given. The warps of a block share the
// channels.
extern "C" __global__ void __launch_bounds__(128, 3) dynamic_sampling_channel_sum(
    const T* __restrict__ x, T* __restrict__ placed, ACC* __restrict__ total, INDEX pixels, INDEX area_plane,
    INDEX area_width, unsigned int plane_factor, unsigned int width_factor, int plane_shift, int width_shift, int channels,
    int height, int width, int lead_y, int lead_x) {
    __shared__ ACC parts[4][WARP];
    const Area area = AREA;
    Pixel pixel;
    const bool active = pixel.find(area);
    ACC sum = 0;
    if (active) {
        const int y = pixel.y - lead_y, column = pixel.x - lead_x;
        const bool inside = y >= 0 && y < height && column >= 0 && column < width;
        const INDEX plane = static_cast<INDEX>(height) * width, at = static_cast<INDEX>(y) * width + column;
        const int first = share(channels, threadIdx.y, 4), last = share(channels, threadIdx.y + 1, 4);
#pragma unroll 8
        for (INDEX c = pixel.n * channels + first; c < pixel.n * channels + last; ++c) {
            const ACC value = inside ? load(x + c * plane + at) : ACC(0);
            if (placed) store(placed + c * area_plane + pixel.at, value);
            sum += value;
        }
    }
    parts[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (!active || threadIdx.y > 0) return;
    total[pixel.n * area_plane + pixel.at] =
        parts[0][threadIdx.x] + parts[1][threadIdx.x] + parts[2][threadIdx.x] + parts[3][threadIdx.x];
}

// Sums along one axis: in (., length, inner), out (., out_length, inner): out[k] = sum over i of
// in[k + base + i * step]. Twice it makes box sums with steps of their own, of which x is zero outside; with a negative
// step it is their adjoint. What lies before the two axes counts as images.
extern "C" __global__ void __launch_bounds__(128, 3) dynamic_sampling_axis_sum(
    const T* __restrict__ in, T* __restrict__ out, INDEX pixels, INDEX area_plane, INDEX area_width,
    unsigned int plane_factor, unsigned int width_factor, int plane_shift, int width_shift, int length, int base,
    int step, int count) {
    const Area area = AREA;
    Pixel pixel;
    if (!pixel.find(area)) return;
    in += pixel.n * length * area_width + pixel.x;
    ACC sum = 0;
    for (int i = 0; i < count; ++i) {
        const int at = pixel.y + base + i * step;
        if (at >= 0 && at < length) sum += load(in + at * area_width);
    }
    store(out + pixel.n * area_plane + pixel.at, sum);
}

// What taps see, in an image with a margin: of each tap Ap times X1, and last Ap of the centre, (N,O,kh*kw+1,H,W).
extern "C" __global__ void __launch_bounds__(128, 4) dynamic_sampling_see(
    const T* __restrict__ position_attention, const ACC* __restrict__ total,
    ACC* __restrict__ seen, INDEX pixels, INDEX area_plane,
    INDEX area_width, unsigned int plane_factor, unsigned int width_factor, int plane_shift, int width_shift,
    int channels, int outputs, int height, int width, int out_height, int out_width, int kernel_h, int kernel_w,
    int samples, int sample_y, int sample_x, int dilation_y, int dilation_x, int stride_y, int stride_x, int lead_y, int lead_x,
    ACC kernel_residual, ACC attention_residual) {
    const Geometry geo = GEOMETRY;
    const Area area = AREA;
    Pixel pixel;
    if (!pixel.find(area)) return;
    const Geometry plain = geo.of_plain(samples);
    const int y = pixel.y - lead_y, column = pixel.x - lead_x, taps = geo.taps();
    const ACC sum = total[pixel.n * area_plane + pixel.at];
    for (int o = blockIdx.y; o < outputs; o += gridDim.y) {
        const INDEX no = pixel.n * outputs + o;
        const T* planes = position_attention + no * taps * plain.x_plane();
        ACC* target = seen + no * (taps + 1) * area_plane + pixel.at;
        Tap tap(0, geo);
        for (int t = 0; t < taps; ++t, tap.next(geo)) {
            const INDEX at = plain.pixel(y - geo.tap_y(tap.a), column - geo.tap_x(tap.b));
            target[t * area_plane] = (at_or_zero(planes + t * plain.x_plane(), at) + attention_residual) * sum;
        }
        const INDEX at = plain.pixel(y, column);
        target[taps * area_plane] = at_or_zero(planes + geo.centre() * plain.x_plane(), at) + attention_residual;
    }
}

extern "C" __global__ void __launch_bounds__(128, BLOCKS) dynamic_sampling_forward(
    const T* __restrict__ plain, int plain_samples,
    const T* __restrict__ x, const T* __restrict__ channel_kernel, const T* __restrict__ spatial_kernel,
    const T* __restrict__ sample_attention, const T* __restrict__ position_attention, const ACC* __restrict__ seen,
    T* __restrict__ y, int* __restrict__ largest, INDEX pixels, INDEX area_plane,
    INDEX area_width, unsigned int plane_factor, unsigned int width_factor, int plane_shift, int width_shift,
    int channels, int outputs, int height, int width, int out_height, int out_width, int kernel_h, int kernel_w,
    int samples, int sample_y, int sample_x, int dilation_y, int dilation_x, int stride_y, int stride_x, int lead_y, int lead_x,
    ACC kernel_residual, ACC attention_residual) {
    const Geometry geo = GEOMETRY;
    const Arrays in = ARRAYS;
    const Area area = AREA;
    Pixel pixel;
    __shared__ Parts parts;
    const bool active = pixel.find(area);
    for (int first = blockIdx.y * OUTPUTS; first < outputs; first += gridDim.y * OUTPUTS) {
        if (active) {
            const Outputs of(pixel, first, OUTPUTS, geo);
            if (OUTPUTS > FEWER && of.count > FEWER) fuse_part<OUTPUTS>(parts, in, y, of, geo);
            else fuse_part<FEWER>(parts, in, y, of, geo);
        }
        __syncthreads();
        const Outputs of(pixel, first, OUTPUTS, geo);
        if (active) fuse_parts(parts, in, {plain, plain_samples}, y, largest, pixel, of, geo);
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(128, BLOCKS) dynamic_sampling_grad_sample_attention(
    const T* __restrict__ grad_output, const int* __restrict__ largest,
    const T* __restrict__ plain, int plain_samples,
    const T* __restrict__ x, const T* __restrict__ channel_kernel, const T* __restrict__ spatial_kernel,
    const T* __restrict__ sample_attention, const T* __restrict__ position_attention, const ACC* __restrict__ seen,
    T* __restrict__ grad, INDEX pixels, INDEX area_plane,
    INDEX area_width, unsigned int plane_factor, unsigned int width_factor, int plane_shift, int width_shift,
    int channels, int outputs, int height, int width, int out_height, int out_width, int kernel_h, int kernel_w,
    int samples, int sample_y, int sample_x, int dilation_y, int dilation_x, int stride_y, int stride_x, int lead_y, int lead_x,
    ACC kernel_residual, ACC attention_residual) {
    const Geometry geo = GEOMETRY;
    const Arrays in = ARRAYS;
    const Area area = AREA;
    Pixel pixel;
    if (!pixel.find(area)) return;
    for (int o = blockIdx.y * FEWER; o < outputs; o += gridDim.y * FEWER) {
        const Outputs of(pixel, o, FEWER, geo);
        sample_attention_gradient<FEWER>(grad_output, largest, in, {plain, plain_samples}, grad, pixel, of, geo);
    }
}

extern "C" __global__ void __launch_bounds__(128, BLOCKS) dynamic_sampling_grad_channel_kernel(
    const T* __restrict__ grad_output, const int* __restrict__ largest,
    const T* __restrict__ plain, int plain_samples,
    const T* __restrict__ x, const T* __restrict__ channel_kernel, const T* __restrict__ spatial_kernel,
    const T* __restrict__ sample_attention, const T* __restrict__ position_attention, const ACC* __restrict__ seen,
    T* __restrict__ grad, INDEX pixels, INDEX area_plane,
    INDEX area_width, unsigned int plane_factor, unsigned int width_factor, int plane_shift, int width_shift,
    int channels, int outputs, int height, int width, int out_height, int out_width, int kernel_h, int kernel_w,
    int samples, int sample_y, int sample_x, int dilation_y, int dilation_x, int stride_y, int stride_x, int lead_y, int lead_x,
    ACC kernel_residual, ACC attention_residual) {
    const Geometry geo = GEOMETRY;
    const Arrays in = ARRAYS;
    const Area area = AREA;
    Pixel pixel;
    if (!pixel.find(area)) return;
    const int strip = blockIdx.z * blockDim.y + threadIdx.y, strips = gridDim.z * blockDim.y;
    for (int o = blockIdx.y * FEWER; o < outputs; o += gridDim.y * FEWER)
        for (int c = strip * CHANNELS; c < channels; c += strips * CHANNELS)
            channel_kernel_gradient(
                grad_output, largest, in, {plain, plain_samples}, grad, pixel, Outputs(pixel, o, FEWER, geo), c, geo);
}

extern "C" __global__ void __launch_bounds__(128, BLOCKS) dynamic_sampling_grad_spatial_kernel(
    const T* __restrict__ grad_output, const int* __restrict__ largest,
    const T* __restrict__ plain, int plain_samples,
    const T* __restrict__ x, const T* __restrict__ channel_kernel, const T* __restrict__ spatial_kernel,
    const T* __restrict__ sample_attention, const T* __restrict__ position_attention, const ACC* __restrict__ seen,
    T* __restrict__ grad, INDEX pixels, INDEX area_plane,
    INDEX area_width, unsigned int plane_factor, unsigned int width_factor, int plane_shift, int width_shift,
    int channels, int outputs, int height, int width, int out_height, int out_width, int kernel_h, int kernel_w,
    int samples, int sample_y, int sample_x, int dilation_y, int dilation_x, int stride_y, int stride_x, int lead_y, int lead_x,
    ACC kernel_residual, ACC attention_residual) {
    const Geometry geo = GEOMETRY;
    const Arrays in = ARRAYS;
    const Area area = AREA;
    Pixel pixel;
    if (!pixel.find(area)) return;
    for (int o = blockIdx.y; o < outputs; o += gridDim.y)
        for (int t = blockIdx.z * TAPS; t < geo.taps(); t += gridDim.z * TAPS)
            spatial_kernel_gradient(
                grad_output, largest, in, {plain, plain_samples}, grad, pixel, Outputs(pixel, o, 1, geo), t, geo);
}

extern "C" __global__ void __launch_bounds__(128, BLOCKS) dynamic_sampling_gather_channels(
    const T* __restrict__ grad_output, const int* __restrict__ largest,
    const T* __restrict__ x, const T* __restrict__ channel_kernel, const T* __restrict__ spatial_kernel,
    const T* __restrict__ sample_attention, const T* __restrict__ position_attention, const ACC* __restrict__ seen,
    ACC* __restrict__ of_x, ACC* __restrict__ of_centre, INDEX batch, int slot,
    INDEX phases, unsigned int phase_factor, int phase_shift, INDEX pixels, INDEX area_plane,
    INDEX area_width, unsigned int plane_factor, unsigned int width_factor, int plane_shift, int width_shift,
    int channels, int outputs, int height, int width, int out_height, int out_width, int kernel_h, int kernel_w,
    int samples, int sample_y, int sample_x, int dilation_y, int dilation_x, int stride_y, int stride_x, int lead_y, int lead_x,
    ACC kernel_residual, ACC attention_residual) {
    const Geometry geo = GEOMETRY;
    const Arrays in = ARRAYS;
    const Area area = AREA;
    Pixel pixel;
    if (!pixel.find(area)) return;
    const Column q(pixel, {phases, phase_factor, phase_shift}, height, geo);
    const int strip = blockIdx.y * blockDim.y + threadIdx.y, strips = gridDim.y * blockDim.y;
    const int begin = blockIdx.z * slot, end = min(begin + slot, outputs);
    for (int o = begin; o < end; ++o)
        for (int c = strip * CHANNELS; c < channels; c += strips * CHANNELS)
            gather_channels(grad_output, largest, in, of_x, of_centre, q, batch, c, blockIdx.z, o, o == begin, geo);
}

extern "C" __global__ void __launch_bounds__(128, BLOCKS) dynamic_sampling_gather_taps(
    const T* __restrict__ grad_output, const int* __restrict__ largest,
    const ACC* __restrict__ of_centre, int strips,
    const T* __restrict__ x, const T* __restrict__ channel_kernel, const T* __restrict__ spatial_kernel,
    const T* __restrict__ sample_attention, const T* __restrict__ position_attention, const ACC* __restrict__ seen,
    ACC* __restrict__ of_total, T* __restrict__ grad, INDEX batch, int slot,
    INDEX phases, unsigned int phase_factor, int phase_shift,
    int area_height, int reach_y, int reach_x, INDEX pixels, INDEX area_plane,
    INDEX area_width, unsigned int plane_factor, unsigned int width_factor, int plane_shift, int width_shift,
    int channels, int outputs, int height, int width, int out_height, int out_width, int kernel_h, int kernel_w,
    int samples, int sample_y, int sample_x, int dilation_y, int dilation_x, int stride_y, int stride_x, int lead_y, int lead_x,
    ACC kernel_residual, ACC attention_residual) {
    const Geometry geo = GEOMETRY;
    const Arrays in = ARRAYS;
    const Area area = AREA;
    Pixel pixel;
    if (!pixel.find(area)) return;
    // The pixels of Area are those that see any tap; or, where taps reach too far for that, those that a single tap sees.
    const bool single = reach_y < 0;
    const int most = single ? 1 : TAPS;
    const int begin = blockIdx.z * slot, end = min(begin + slot, outputs);
    for (int o = begin; o < end; ++o)
        for (int t = blockIdx.y * most; t < geo.taps(); t += gridDim.y * most) {
            Column q(pixel, {phases, phase_factor, phase_shift}, area_height, geo);
            q.y -= single ? geo.tap_y(t / kernel_w) : reach_y;
            q.x -= single ? geo.tap_x(t % kernel_w) : reach_x;
            const int count = min(most, geo.taps() - t);
            gather_taps(
                grad_output, largest, in, of_centre, strips, of_total, grad, q, batch, t, count, blockIdx.z, o,
                o == begin, geo);
        }
}

extern "C" __global__ void __launch_bounds__(128, 4) dynamic_sampling_grad_x(
    const T* __restrict__ grad_output, const int* __restrict__ largest,
    const T* __restrict__ x, const T* __restrict__ channel_kernel, const T* __restrict__ spatial_kernel,
    const T* __restrict__ sample_attention, const T* __restrict__ position_attention, const ACC* __restrict__ seen,
    const ACC* __restrict__ of_x, int slots, const ACC* __restrict__ of_total, int tap_slots,
    T* __restrict__ grad, INDEX batch, INDEX pixels, INDEX area_plane,
    INDEX area_width, unsigned int plane_factor, unsigned int width_factor, int plane_shift, int width_shift,
    int channels, int outputs, int height, int width, int out_height, int out_width, int kernel_h, int kernel_w,
    int samples, int sample_y, int sample_x, int dilation_y, int dilation_x, int stride_y, int stride_x, int lead_y, int lead_x,
    ACC kernel_residual, ACC attention_residual) {
    const Geometry geo = GEOMETRY;
    const Arrays in = ARRAYS;
    const Area area = AREA;
    Pixel pixel;
    if (!pixel.find(area)) return;
    for (int c = blockIdx.y * CHANNELS; c < channels; c += gridDim.y * CHANNELS)
        x_gradient(grad_output, largest, in, of_x, slots, of_total, tap_slots, grad, pixel, batch, c, geo);
}
