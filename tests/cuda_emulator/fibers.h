// The threads of one block as fibers: each has a stack of its own and gives up the processor only where it waits.
//
// A fiber is made once (makecontext) and runs one block after another; after that, switching is a _setjmp and a _longjmp,
// which unlike swapcontext make no system call.
#pragma once
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

namespace emulator {

constexpr int kWarp = 32;
constexpr size_t kStack = 64 << 10;
constexpr size_t kPage = 4096;

enum class State : uint8_t { runnable, at_barrier, at_warp, finished };

struct Fiber {
  jmp_buf resume;
  ucontext_t first_entry;
  bool entered = false;
  State state = State::finished;
  uint32_t warp_mask = 0;  // the lanes that this one waits for at_warp
  int exchange = 0;        // which of its two slots a shuffle used last
  unsigned x = 0, y = 0, z = 0;
};

enum class Order { forward, reverse, random };

class Block {
 public:
  // Called on a fiber's own stack, once for each block that it is part of.
  void (*thread_body)() = nullptr;
  // Called whenever another fiber gets the processor.
  void (*on_switch)(const Fiber&) = nullptr;

  int size() const { return size_; }
  int current() const { return current_; }
  Fiber& fiber(int i) { return fibers_[i]; }

  // A fresh set of fibers for blocks of this shape. Also after a failure, which leaves fibers in the middle of a block.
  void prepare(unsigned x, unsigned y, unsigned z) {
    size_ = int(x * y * z);
    if (size_ > int(fibers_.size()) || broken_) make_fibers(size_ > int(fibers_.size()) ? size_ : int(fibers_.size()));
    for (int i = 0; i < size_; i++) {
      fibers_[i].x = i % x, fibers_[i].y = i / x % y, fibers_[i].z = i / (x * y);
    }
    order_.resize(size_);
    for (int i = 0; i < size_; i++) order_[i] = chosen_order() == Order::reverse ? size_ - 1 - i : i;
  }

  // Runs every thread of one block to its end. Returns what is wrong with the kernel, or nullptr.
  const char* run() {
    broken_ = true;
    for (int i = 0; i < size_; i++) fibers_[i].state = State::runnable, fibers_[i].exchange = 0;
    for (;;) {
      if (chosen_order() == Order::random) shuffle_order();
      for (int i : order_) {
        if (fibers_[i].state == State::runnable) enter(i);
      }
      const int finished = count(State::finished), waiting = count(State::at_barrier);
      if (finished == size_) break;
      if (waiting == size_) {
        for (int i = 0; i < size_; i++) fibers_[i].state = State::runnable;
      } else if (!release_warps()) {
        return finished ? "barrier divergence: some threads of the block returned before a barrier that others wait at"
                        : "barrier divergence: the threads of the block wait at different places";
      }
    }
    broken_ = false;
    return nullptr;
  }

  // Called by a fiber: give up the processor until `state` is over.
  void wait(State state) {
    fibers_[current_].state = state;
    jump(fibers_[current_].resume, scheduler_);
  }

  // Called by a fiber: go on when every lane of `mask` that has not returned waits too.
  void wait_for_warp(uint32_t mask) {
    fibers_[current_].warp_mask = mask;
    wait(State::at_warp);
  }

 private:
  __attribute__((noinline)) static void jump(jmp_buf& from, jmp_buf& to) {
    if (!_setjmp(from)) _longjmp(to, 1);
  }

  __attribute__((noinline)) void enter(int i) {
    current_ = i;
    on_switch(fibers_[i]);
    if (_setjmp(scheduler_)) return;
    Fiber& fiber = fibers_[current_];
    if (fiber.entered) _longjmp(fiber.resume, 1);
    fiber.entered = true;
    setcontext(&fiber.first_entry);
  }

  static void fiber_main(unsigned high, unsigned low) {
    auto* block = reinterpret_cast<Block*>(uintptr_t(high) << 32 | low);
    for (;;) {
      block->thread_body();
      block->wait(State::finished);
    }
  }

  void make_fibers(int count) {
    const size_t each = kStack + kPage;  // a guard page below each stack
    if (stacks_) munmap(stacks_, each * fibers_.size());
    stacks_ = static_cast<char*>(mmap(nullptr, each * count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    fibers_ = std::vector<Fiber>(count);
    const auto self = reinterpret_cast<uintptr_t>(this);
    for (int i = 0; i < count; i++) {
      mprotect(stacks_ + each * i, kPage, PROT_NONE);
      ucontext_t& context = fibers_[i].first_entry;
      getcontext(&context);
      context.uc_stack.ss_sp = stacks_ + each * i + kPage;
      context.uc_stack.ss_size = kStack;
      context.uc_link = nullptr;
      makecontext(&context, reinterpret_cast<void (*)()>(&fiber_main), 2, unsigned(self >> 32), unsigned(self));
    }
    broken_ = false;
  }

  int count(State state) const {
    int found = 0;
    for (int i = 0; i < size_; i++) found += fibers_[i].state == state;
    return found;
  }

  // Lets a lane go on when all the lanes that it waits for wait for it too. Says whether any went on.
  bool release_warps() {
    bool released = false;
    for (int first = 0; first < size_; first += kWarp) {
      uint32_t waiting = 0, alive = 0;
      const int lanes = size_ - first < kWarp ? size_ - first : kWarp;
      for (int lane = 0; lane < lanes; lane++) {
        waiting |= uint32_t(fibers_[first + lane].state == State::at_warp) << lane;
        alive |= uint32_t(fibers_[first + lane].state != State::finished) << lane;
      }
      for (int lane = 0; lane < lanes; lane++) {
        const uint32_t awaited = fibers_[first + lane].warp_mask & alive;
        if (waiting >> lane & 1 && (awaited & waiting) == awaited) fibers_[first + lane].state = State::runnable, released = true;
      }
    }
    return released;
  }

  // Fisher and Yates, with a linear congruential generator (Knuth's MMIX): the same orders in every run.
  void shuffle_order() {
    for (int i = size_ - 1; i > 0; i--) {
      random_ = random_ * 6364136223846793005u + 1442695040888963407u;
      std::swap(order_[i], order_[(random_ >> 33) % unsigned(i + 1)]);
    }
  }

  static Order chosen_order() {
    static const Order order = [] {
      const char* name = getenv("CUDA_EMULATOR_ORDER");
      if (!name) return Order::forward;
      return !strcmp(name, "reverse") ? Order::reverse : !strcmp(name, "random") ? Order::random : Order::forward;
    }();
    return order;
  }

  std::vector<Fiber> fibers_;
  std::vector<int> order_;
  uint64_t random_ = 1;
  jmp_buf scheduler_;
  char* stacks_ = nullptr;
  int size_ = 0, current_ = 0;
  bool broken_ = false;
};

}  // namespace emulator
