// Carves one block of scratch memory into aligned arrays. Run on a null base it only counts, so the code that
// measures the scratch and the code that uses it are the same.
#pragma once

#include "common/host_device.h"

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {

class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<unsigned char*>(base)) {}

  template <typename T>
  T* take(int64_t count) {
    T* out = base_ != nullptr ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + kAlign - 1) / kAlign * kAlign;
    return out;
  }
  int64_t used() const { return used_; }

 private:
  static constexpr int64_t kAlign = 64;  // a cache line, and the widest vector
  unsigned char* base_;
  int64_t used_ = 0;
};

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
