// Philox4x32-10 (Salmon et al., SC 2011): random bits that are a pure function of (seed, offset, stream, index).
//
// Nothing is stored for a backward pass and the bits do not depend on threads, blocks or device.
// The same function in tensor arithmetic is xfercore/reference/philox.py.
#pragma once

#include "common/host_device.h"

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {

struct PhiloxState {
  int64_t seed;
  int64_t offset;
};

struct Philox4 {
  uint32_t word[4];
};

// One round, and the next round's key. Written out by name ten times below: a loop here would keep the loops over
// groups from vectorising.
#define XFER_PHILOX_ROUND                                        \
  {                                                              \
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0; \
    const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2; \
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;              \
    c1 = static_cast<uint32_t>(p1);                              \
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;              \
    c3 = static_cast<uint32_t>(p0);                              \
    k0 += 0x9E3779B9u;                                           \
    k1 += 0xBB67AE85u;                                           \
  }
#define XFER_PHILOX_5_ROUNDS XFER_PHILOX_ROUND XFER_PHILOX_ROUND XFER_PHILOX_ROUND XFER_PHILOX_ROUND XFER_PHILOX_ROUND

XFER_HD Philox4 philox4x32_10(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  XFER_PHILOX_5_ROUNDS
  XFER_PHILOX_5_ROUNDS
  return {{c0, c1, c2, c3}};
}
#undef XFER_PHILOX_5_ROUNDS
#undef XFER_PHILOX_ROUND

// Four words for group `index` of `stream`; a stream is one use of randomness inside one call (a layer, say).
XFER_HD Philox4 philox_words(const PhiloxState& state, uint32_t stream, uint64_t index) {
  const uint64_t seed = static_cast<uint64_t>(state.seed);
  const uint64_t offset = static_cast<uint64_t>(state.offset);
  return philox4x32_10(static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), static_cast<uint32_t>(offset),
                       static_cast<uint32_t>(offset >> 32) ^ (stream << 24), static_cast<uint32_t>(seed),
                       static_cast<uint32_t>(seed >> 32));
}

// A unit is dropped iff its 32 random bits are below p * 2^32.
XFER_HD uint64_t drop_threshold(double p) { return static_cast<uint64_t>(p * 4294967296.0 + 0.5); }

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
