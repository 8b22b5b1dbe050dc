// Small kernels for the emulator's own tests: each runs right or with one defect planted in it.
#pragma once

#include "common/launch.h"

namespace xfer {

enum class Planted : int32_t {
  block_sum,        // out[0] = sum of in; atomics between blocks
  missing_barrier,  // the same, without the barrier between writing and reading shared memory
  copy,             // out = in
  read_overrun,     // the same, with one block too many threads past the end
  write_overrun,
  write_underrun,
  write_to_input,
  shared_overrun,     // one element past the dynamic shared memory
  unreached_barrier,  // half of the threads return before the barrier
  stale_shared,       // reads a __shared__ array that nobody wrote
  warp_votes,         // out[lane] = ballot, any, all and shuffles of known values
  partial_shuffle,    // half of a warp takes part in a shuffle whose mask names all
};

struct PlantedArgs {
  Planted kernel;
  int64_t count;
  const float* in;  // [count]
  float* out;       // [count] or [1]
};

void planted_cuda(const PlantedArgs& args);

}  // namespace xfer
