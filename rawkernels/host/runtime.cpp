// Runs the blocks of a CUDA grid on one system thread: a fiber per CUDA thread, made only when one has to wait.
//
// Threads of a block start in shuffled order, one after the other on the same fiber. One that reaches a barrier or a
// warp operation keeps its fiber, and the rest go on with the next; a kernel without barriers never switches. When
// nobody can run, warp operations whose lanes have all arrived are released, else the barrier if everyone who has not
// returned waits at it; else the block is stuck, and the launch fails with a message. Blocks run in shuffled order too.
// Shared memory is filled with NaN before every block.
#include <dlfcn.h>
#include <link.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <memory>
#include <utility>
#include <vector>

namespace {

constexpr int WARP = 32;
constexpr size_t STACK_BYTES = 256 << 10, SHARED_GUARD = 1024;
constexpr unsigned char POISON = 0xff;  // four or eight of it are a NaN

struct Size3 { unsigned x, y, z; };

}  // namespace

// Shared with __init__.py and with the code that library.py appends to a kernel's text.
extern "C" {
struct ShimThread { Size3 thread, block, block_size, grid_size; };
struct ShimRequest {
    Size3 grid, block;
    uint64_t shared_bytes, seed;
    char* message;  // 256 bytes
};
struct ShimKernel {
    void (*call)(void** arguments);
    void* anchor;   // a thread_local of the kernel's library: its shared memory lies in the same block of memory
    char* dynamic;  // dynamic shared memory, or null
};
}

namespace {

struct Random {  // splitmix64
    uint64_t state;
    uint64_t next() {
        uint64_t z = state += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        return z ^ z >> 31;
    }
    void shuffle(std::vector<int>& items) {
        for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[next() % i]);
    }
};

enum class State { waiting_to_start, ready, at_barrier, at_exchange, at_ballot, done };

struct Lane {
    State state = State::waiting_to_start;
    int fiber = -1;
    unsigned mask = 0;
    int source = 0;
    uint64_t value = 0, result = 0;
};

struct Fiber {
    ucontext_t start;
    jmp_buf resume;
    char* stack = nullptr;
    bool fresh = true;

    Fiber() {
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void* memory = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (memory == MAP_FAILED) return;
        stack = static_cast<char*>(memory);
        mprotect(stack, static_cast<size_t>(sysconf(_SC_PAGESIZE)), PROT_NONE);  // an overflow stops here
    }
    ~Fiber() {
        if (stack) munmap(stack, STACK_BYTES);
    }
};

class Scheduler {
  public:
    ShimThread view;
    int current = 0;  // lane that runs

    int launch(const ShimRequest& request, const ShimKernel& kernel, void** arguments);
    void wait(State state);
    Lane& lane() { return lanes_[current]; }
    [[noreturn]] void fail(const char* format, int a = 0, int b = 0);

  private:
    static void body();
    void run_block(Size3 block);
    void run_lanes(int fiber);
    int next_fiber();
    void release();
    bool release_warp(int first);
    void resume(int fiber);
    [[noreturn]] void finish() { _longjmp(home_, 1); }
    void enter(int lane);

    ShimRequest request_;
    ShimKernel kernel_;
    void** arguments_ = nullptr;
    int threads_ = 0, started_ = 0, unfinished_ = 0;
    bool failed_ = false;
    Random random_{0};
    std::vector<Lane> lanes_;
    std::vector<int> order_, ready_, idle_;  // lanes to start; lanes to go on; fibers
    std::vector<std::unique_ptr<Fiber>> fibers_;
    jmp_buf home_;
    ucontext_t unused_;
};

thread_local Scheduler scheduler;

// The memory block that holds all thread_local objects of the library of `anchor`, for this thread.
struct Storage { char *anchor, *begin; size_t size; };

int find_storage(dl_phdr_info* info, size_t, void* data) {
    auto* wanted = static_cast<Storage*>(data);
    auto* begin = static_cast<char*>(info->dlpi_tls_data);
    for (int i = 0; begin && i < info->dlpi_phnum; ++i) {
        const auto& header = info->dlpi_phdr[i];
        if (header.p_type != PT_TLS || wanted->anchor < begin || wanted->anchor >= begin + header.p_memsz) continue;
        wanted->begin = begin;
        wanted->size = header.p_memsz;
        return 1;
    }
    return 0;
}

void Scheduler::fail(const char* format, int a, int b) {
    snprintf(request_.message, 256, format, a, b);
    failed_ = true;
    for (auto& fiber : fibers_) fiber->fresh = true;  // some are in the middle of a kernel: never resume those
    finish();
}

void Scheduler::enter(int lane) {
    current = lane;
    const unsigned x = request_.block.x, y = request_.block.y, number = static_cast<unsigned>(lane);
    view.thread = {number % x, number / x % y, number / (x * y)};
}

void Scheduler::run_lanes(int fiber) {
    while (started_ < threads_) {
        const int lane = order_[started_++];
        lanes_[lane].fiber = fiber;
        enter(lane);
        kernel_.call(arguments_);
        lanes_[current].state = State::done;
        --unfinished_;
    }
}

void Scheduler::body() {
    for (;;) {  // an idle fiber is resumed here for the next block
        const int fiber = scheduler.idle_.back();
        scheduler.idle_.pop_back();
        scheduler.run_lanes(fiber);
        scheduler.idle_.push_back(fiber);
        if (_setjmp(scheduler.fibers_[fiber]->resume) != 0) continue;  // saved first: next_fiber() may end the block
        const int next = scheduler.next_fiber();
        if (next != fiber) scheduler.resume(next);
    }
}

void Scheduler::resume(int fiber) {
    Fiber& target = *fibers_[fiber];
    if (!target.fresh) _longjmp(target.resume, 1);
    target.fresh = false;
    getcontext(&target.start);
    target.start.uc_stack.ss_sp = target.stack;
    target.start.uc_stack.ss_size = STACK_BYTES;
    target.start.uc_link = nullptr;
    makecontext(&target.start, body, 0);
    setcontext(&target.start);
}

// Who runs next: a thread that has not started, then one that may go on.
int Scheduler::next_fiber() {
    if (unfinished_ == 0) finish();
    if (started_ < threads_) {
        if (idle_.empty()) {
            fibers_.push_back(std::make_unique<Fiber>());
            if (!fibers_.back()->stack) fail("no memory for the stack of thread %d", started_);
            idle_.push_back(static_cast<int>(fibers_.size()) - 1);
        }
        return idle_.back();  // it takes itself off the list
    }
    if (ready_.empty()) release();
    const int lane = ready_.back();
    ready_.pop_back();
    enter(lane);
    return lanes_[lane].fiber;
}

void Scheduler::release() {
    for (int first = 0; first < threads_; first += WARP)
        while (release_warp(first)) {}
    if (ready_.empty()) {
        int at_barrier = 0;
        for (auto& lane : lanes_) at_barrier += lane.state == State::at_barrier;
        if (at_barrier != unfinished_)
            fail("block is stuck: %d threads wait at __syncthreads, %d at a warp operation", at_barrier,
                 unfinished_ - at_barrier);
        for (int lane = 0; lane < threads_; ++lane)
            if (lanes_[lane].state == State::at_barrier) ready_.push_back(lane);
    }
    random_.shuffle(ready_);
    for (int lane : ready_) lanes_[lane].state = State::ready;
}

// Release the lanes of one warp operation whose participants have all arrived or returned.
bool Scheduler::release_warp(int first) {
    const int count = threads_ - first < WARP ? threads_ - first : WARP;
    for (int i = 0; i < count; ++i) {
        const Lane& leader = lanes_[first + i];
        if (leader.state != State::at_exchange && leader.state != State::at_ballot) continue;
        unsigned arrived = 0, votes = 0;
        bool complete = true;
        for (int j = 0; j < count; ++j) {
            const Lane& other = lanes_[first + j];
            if (!(leader.mask >> j & 1u) || other.state == State::done) continue;
            if (other.state != leader.state || other.mask != leader.mask) complete = false;
            arrived |= 1u << j;
            if (other.value) votes |= 1u << j;
        }
        if (!complete) continue;
        const State kind = leader.state;
        for (int j = 0; j < count; ++j) {
            Lane& lane = lanes_[first + j];
            if (!(arrived >> j & 1u)) continue;
            const bool present = lane.source >= 0 && lane.source < WARP && (arrived >> lane.source & 1u);
            lane.result = kind == State::at_ballot ? votes : present ? lanes_[first + lane.source].value : ~uint64_t{0};
            ready_.push_back(first + j);
        }
        for (int j = 0; j < count; ++j)
            if (arrived >> j & 1u) lanes_[first + j].state = State::ready;
        return true;
    }
    return false;
}

void Scheduler::wait(State state) {
    Lane& self = lanes_[current];
    self.state = state;
    const int fiber = self.fiber, next = next_fiber();
    if (next == fiber) return;  // released at once
    if (_setjmp(fibers_[fiber]->resume) == 0) resume(next);
}

void Scheduler::run_block(Size3 block) {
    view.block = block;
    lanes_.assign(threads_, Lane());
    random_.shuffle(order_);
    started_ = 0;
    unfinished_ = threads_;
    ready_.clear();
    if (_setjmp(home_) == 0) resume(next_fiber());
}

int Scheduler::launch(const ShimRequest& request, const ShimKernel& kernel, void** arguments) {
    request_ = request;
    kernel_ = kernel;
    arguments_ = arguments;
    const Size3 grid = request.grid, block = request.block;
    threads_ = static_cast<int>(block.x * block.y * block.z);
    view = {{0, 0, 0}, {0, 0, 0}, block, grid};
    failed_ = false;
    order_.resize(threads_);
    for (int i = 0; i < threads_; ++i) order_[i] = i;
    idle_.clear();
    for (size_t i = 0; i < fibers_.size(); ++i) idle_.push_back(static_cast<int>(i));
    Storage storage = {static_cast<char*>(kernel.anchor), nullptr, 0};
    if (kernel.anchor) dl_iterate_phdr(find_storage, &storage);

    const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    random_.state = request.seed;
    // An order that visits each block once.
    uint64_t stride = random_.next() % blocks | 1, index = random_.next() % blocks;
    auto divisor = [](uint64_t a, uint64_t b) {
        while (b) a = std::exchange(b, a % b);
        return a;
    };
    while (divisor(stride, blocks) != 1) stride += 2;
    for (uint64_t i = 0; i < blocks && !failed_; ++i, index = (index + stride) % blocks) {
        if (storage.begin) memset(storage.begin, POISON, storage.size);
        run_block({static_cast<unsigned>(index % grid.x), static_cast<unsigned>(index / grid.x % grid.y),
                   static_cast<unsigned>(index / (uint64_t{grid.x} * grid.y))});
        const char* guard = kernel.dynamic ? kernel.dynamic + request.shared_bytes : nullptr;
        for (size_t byte = 0; guard && !failed_ && byte < SHARED_GUARD; ++byte)
            if (static_cast<unsigned char>(guard[byte]) != POISON) {
                snprintf(request_.message, 256, "write past the end of its %d bytes of dynamic shared memory",
                         static_cast<int>(request.shared_bytes));
                failed_ = true;
            }
    }
    return failed_;
}

uint64_t exchange(State kind, unsigned mask, uint64_t value, int source) {
    Lane& lane = scheduler.lane();
    if (!(mask >> (scheduler.current % WARP) & 1u))
        scheduler.fail("lane %d calls a warp operation whose mask leaves it out", scheduler.current % WARP);
    lane.mask = mask;
    lane.value = value;
    lane.source = source;
    scheduler.wait(kind);
    return lane.result;
}

}  // namespace

extern "C" {
int shim_launch(const ShimRequest* request, const ShimKernel* kernel, void** arguments) {
    return scheduler.launch(*request, *kernel, arguments);
}
const ShimThread* shim_current() { return &scheduler.view; }
int shim_lane() { return scheduler.current % WARP; }
void shim_barrier() { scheduler.wait(State::at_barrier); }
uint64_t shim_exchange(unsigned mask, uint64_t value, int source) {
    return exchange(State::at_exchange, mask, value, source);
}
unsigned shim_ballot(unsigned mask, int predicate) {
    return static_cast<unsigned>(exchange(State::at_ballot, mask, predicate != 0, 0));
}
}
