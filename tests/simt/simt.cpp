// The scheduler and the shared memory behind simt.h.
#include "simt.h"

#include "simt_buffer.h"

#include <link.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simt {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kSharedLimit = 227 * 1024;  // the most a block of sm_90 can have

std::string text(const uint3& v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

struct Fiber {
  ucontext_t start;
  jmp_buf context;
  bool alive = false;  // its stack holds a loop that waits for the next block
  bool done = true;
  unsigned char* stack = nullptr;
  uint3 index = {};
  Lane lane;
  bool in_meeting = false;
  const char* waits_at = nullptr;
  int line = 0;
};

struct State {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<std::unique_ptr<Buffer>> buffers;
  std::vector<unsigned> runnable;
  Buffer shared;
  uint64_t random = 1;
  const std::function<void()>* body = nullptr;
  const char* kernel = "";
  unsigned threads = 0;
  unsigned running = 0;
  unsigned at_barrier = 0;
  unsigned finished = 0;
  bool in_kernel = false;
  std::string error;
  jmp_buf scheduler;
};
State g;

uint64_t draw() {  // splitmix64
  uint64_t z = (g.random += 0x9E3779B97F4A7C15ull);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

Fiber& current() { return *g.fibers[g.running]; }

[[noreturn]] void to_scheduler() { _longjmp(g.scheduler, 1); }

void wait() {
  if (_setjmp(current().context) == 0) to_scheduler();
}

void fiber_main() {
  for (;;) {
    (*g.body)();
    current().done = true;
    ++g.finished;
    wait();
  }
}

__attribute__((noinline)) void resume(unsigned thread) {
  g.running = thread;
  threadIdx = current().index;
  if (_setjmp(g.scheduler) != 0) return;
  if (current().alive) _longjmp(current().context, 1);
  current().alive = true;
  setcontext(&current().start);
}

void prepare_fiber(Fiber& fiber) {
  if (fiber.stack == nullptr) {
    void* stack = mmap(nullptr, kStackBytes + page_size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED) throw std::runtime_error("simt: no memory for a fiber's stack");
    mprotect(stack, page_size(), PROT_NONE);
    fiber.stack = static_cast<unsigned char*>(stack) + page_size();
  }
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack;
  fiber.start.uc_stack.ss_size = kStackBytes;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, fiber_main, 0);
}

// All __shared__ arrays of this library are its thread-local block (see __shared__ in simt.h).
thread_local unsigned char tls_anchor;

int poison_tls(dl_phdr_info* info, size_t, void*) {
  if (info->dlpi_tls_data == nullptr) return 0;
  auto* block = static_cast<unsigned char*>(info->dlpi_tls_data);
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    if (info->dlpi_phdr[i].p_type != PT_TLS) continue;
    const size_t bytes = info->dlpi_phdr[i].p_memsz;
    if (&tls_anchor >= block && &tls_anchor < block + bytes) {
      std::memset(block, kPoison, bytes);
      return 1;
    }
  }
  return 0;
}

void poison_shared() {
  tls_anchor = 0;
  dl_iterate_phdr(poison_tls, nullptr);
  std::memset(g.shared.data, kPoison, g.shared.bytes);
}

[[noreturn]] void abort_kernel(std::string what) {
  g.error = std::string(g.kernel) + ": block " + text(blockIdx) + ", thread " + text(threadIdx) + ": " + what;
  to_scheduler();
}

void on_fault(int signal_number, siginfo_t* info, void* context) {
  if (!g.in_kernel) {
    signal(signal_number, SIG_DFL);
    return;
  }
  const auto* address = static_cast<const unsigned char*>(info->si_addr);
  const char* access = "access";
#if defined(__x86_64__)
  access = (static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & 2) ? "write" : "read";
#else
  (void)context;
#endif
  if (g.shared.near(address)) abort_kernel(offence(g.shared, address, access));
  for (const auto& buffer : g.buffers) {
    if (buffer->near(address)) abort_kernel(offence(*buffer, address, access));
  }
  for (unsigned thread = 0; thread < g.threads; ++thread) {
    const unsigned char* stack = g.fibers[thread]->stack;
    if (address >= stack - page_size() && address < stack) abort_kernel("the thread's stack is exhausted");
  }
  abort_kernel(std::string(access) + " at an address near no argument");
}

// Faults belong to the kernel only while one runs: whoever handled them before does so again afterwards.
class FaultGuard {
 public:
  FaultGuard() {
    static unsigned char handler_stack[64 * 1024];
    stack_t stack = {};
    stack.ss_sp = handler_stack;
    stack.ss_size = sizeof(handler_stack);
    sigaltstack(&stack, &old_stack_);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &old_segv_);
    sigaction(SIGBUS, &action, &old_bus_);
    g.in_kernel = true;
  }
  ~FaultGuard() {
    g.in_kernel = false;
    sigaction(SIGSEGV, &old_segv_, nullptr);
    sigaction(SIGBUS, &old_bus_, nullptr);
    sigaltstack(&old_stack_, nullptr);
  }

 private:
  stack_t old_stack_;
  struct sigaction old_segv_, old_bus_;
};

std::string deadlock() {
  std::string what = "deadlock in block " + text(blockIdx) + ": " + std::to_string(g.finished) + " of " +
                     std::to_string(g.threads) + " threads have ended";
  std::vector<std::pair<std::string, unsigned>> places;
  for (unsigned thread = 0; thread < g.threads; ++thread) {
    const Fiber& fiber = *g.fibers[thread];
    if (fiber.done) continue;
    const std::string place =
        std::string(fiber.waits_at) + (fiber.line > 0 ? ":" + std::to_string(fiber.line) : std::string());
    auto found = std::find_if(places.begin(), places.end(), [&](const auto& p) { return p.first == place; });
    if (found == places.end()) found = places.insert(places.end(), {place, 0});
    ++found->second;
  }
  for (const auto& [place, count] : places) what += ", " + std::to_string(count) + " wait at " + place;
  return what;
}

void run_block() {
  poison_shared();
  g.at_barrier = g.finished = 0;
  g.runnable.resize(g.threads);
  for (unsigned thread = 0; thread < g.threads; ++thread) {
    Fiber& fiber = *g.fibers[thread];
    fiber.done = fiber.in_meeting = false;
    g.runnable[thread] = thread;
  }
  while (!g.runnable.empty() && g.error.empty()) {
    std::swap(g.runnable[draw() % g.runnable.size()], g.runnable.back());
    const unsigned thread = g.runnable.back();
    g.runnable.pop_back();
    resume(thread);
  }
  if (g.error.empty() && g.finished < g.threads) g.error = std::string(g.kernel) + ": " + deadlock();
  if (g.error.empty()) {
    const unsigned char* damaged = g.shared.damage();
    if (damaged != nullptr) g.error = std::string(g.kernel) + ": " + offence(g.shared, damaged, "write");
  }
}

uint64_t coprime_step(uint64_t count) {
  if (count < 3) return 1;
  uint64_t step = draw() % count;
  for (;; ++step) {
    uint64_t a = count, b = step % count;
    while (b != 0) std::swap(a %= b, b);
    if (a == 1) return step % count;
  }
}

}  // namespace

void fail(const char* what) { abort_kernel(what); }

void* dynamic_shared_memory() { return g.shared.data; }

unsigned lane_id() { return g.running % kWarp; }
Lane& own_lane() { return current().lane; }

void sync_block(const char* file, int line) {
  current().waits_at = file;
  current().line = line;
  if (++g.at_barrier == g.threads) {
    g.at_barrier = 0;
    for (unsigned thread = 0; thread < g.threads; ++thread)
      if (thread != g.running) g.runnable.push_back(thread);
    // The last to arrive queues up as well: it has no head start over those that waited.
    g.runnable.push_back(g.running);
  }
  wait();
}

void meet(unsigned kind, unsigned mask, void (*finish)(Lane* const* lanes, unsigned mask), const char* where) {
  const unsigned lane = lane_id(), first = g.running - lane;
  if ((mask >> lane & 1u) == 0) fail("a warp collective whose mask lacks the calling lane");
  Fiber& own = current();
  own.lane.kind = kind;
  own.lane.mask = mask;
  own.in_meeting = true;
  own.waits_at = where;
  own.line = 0;
  Lane* lanes[kWarp] = {};
  for (unsigned other = 0; other < kWarp; ++other) {
    if ((mask >> other & 1u) == 0) continue;
    if (first + other >= g.threads) fail("a warp collective whose mask names lanes that the block does not have");
    Fiber& fiber = *g.fibers[first + other];
    if (fiber.done) fail("a warp collective whose mask names a lane that has ended");
    if (!fiber.in_meeting || fiber.lane.mask != mask || fiber.lane.kind != kind) return wait();
    lanes[other] = &fiber.lane;
  }
  finish(lanes, mask);
  for (unsigned other = 0; other < kWarp; ++other) {
    if (lanes[other] == nullptr) continue;
    g.fibers[first + other]->in_meeting = false;
    g.runnable.push_back(first + other);
  }
  wait();
}

void finish_shuffle(Lane* const* lanes, unsigned mask) {
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (lanes[lane] == nullptr) continue;
    if ((mask >> lanes[lane]->source & 1u) == 0) fail("a warp shuffle that reads a lane outside its mask");
    lanes[lane]->result = lanes[lanes[lane]->source]->value;
  }
}

void finish_ballot(Lane* const* lanes, unsigned) {
  uint64_t votes = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane)
    if (lanes[lane] != nullptr) votes |= lanes[lane]->value << lane;
  for (unsigned lane = 0; lane < kWarp; ++lane)
    if (lanes[lane] != nullptr) lanes[lane]->result = votes;
}

void launch(const char* kernel, dim3 grid, dim3 block, size_t smem_bytes, const std::function<void()>& body) {
  const auto refuse = [&](const std::string& why) { throw std::runtime_error(std::string(kernel) + ": " + why); };
  const uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
  const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
  if (threads == 0 || threads > 1024 || block.z > 64) refuse("a block of " + std::to_string(threads) + " threads");
  if (blocks == 0 || grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535) refuse("a grid no device accepts");
  if (smem_bytes > kSharedLimit) refuse(std::to_string(smem_bytes) + " bytes of shared memory");

  g.kernel = kernel;
  g.body = &body;
  g.threads = static_cast<unsigned>(threads);
  g.error.clear();
  g.shared = make_buffer("dynamic shared memory", smem_bytes, 128, kEndAligned);
  while (g.fibers.size() < threads) g.fibers.push_back(std::make_unique<Fiber>());
  for (unsigned thread = 0; thread < threads; ++thread) {
    Fiber& fiber = *g.fibers[thread];
    if (!fiber.alive) prepare_fiber(fiber);
    fiber.index = {thread % block.x, thread / block.x % block.y, thread / (block.x * block.y)};
  }
  for (const auto& buffer : g.buffers)
    if (!buffer->writable) mprotect(buffer->first(), buffer->mapped, PROT_READ);
  gridDim = grid;
  blockDim = block;
  {
    FaultGuard guard;
    const uint64_t step = coprime_step(blocks);
    uint64_t index = draw() % blocks;
    for (uint64_t turn = 0; turn < blocks && g.error.empty(); ++turn, index = (index + step) % blocks) {
      blockIdx = {static_cast<unsigned>(index % grid.x), static_cast<unsigned>(index / grid.x % grid.y),
                  static_cast<unsigned>(index / grid.x / grid.y)};
      run_block();
    }
  }
  for (const auto& buffer : g.buffers) {
    mprotect(buffer->first(), buffer->mapped, PROT_READ | PROT_WRITE);
    const unsigned char* damaged = buffer->damage();
    if (damaged != nullptr && g.error.empty()) {
      g.error = std::string(kernel) + ": " + offence(*buffer, damaged, "write");
    }
  }
  munmap(g.shared.mapping, g.shared.mapped + 2 * kGuardBytes);
  g.shared = {};
  if (!g.error.empty()) {
    for (auto& fiber : g.fibers) fiber->alive = false;
    throw std::runtime_error(g.error);
  }
}

}  // namespace simt

// What simt_harness.py calls.
extern "C" {

void simt_seed(uint64_t seed) { simt::g.random = seed * 0x2545F4914F6CDD1Dull + 1; }

// Memory of `bytes` between inaccessible pages. layout 0: ends exactly at the upper guard, so its start is aligned to
// `alignment` alone; 1: starts at the lower guard; 2: as 0 with 16-byte alignment.
void* simt_buffer(const char* name, uint64_t bytes, uint64_t alignment, int layout, bool writable) {
  auto buffer = std::make_unique<simt::Buffer>(
      simt::make_buffer(name, bytes, layout == simt::kEndAligned ? 16 : alignment, static_cast<simt::Layout>(layout)));
  buffer->writable = writable;
  simt::g.buffers.push_back(std::move(buffer));
  return simt::g.buffers.back()->data;
}

void simt_free_buffers() {
  for (const auto& buffer : simt::g.buffers) munmap(buffer->mapping, buffer->mapped + 2 * simt::kGuardBytes);
  simt::g.buffers.clear();
}

}  // extern "C"
