// Memory whose bounds are checked: what every pointer argument and the dynamic shared memory of tests/simt lie in.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>

namespace simt {

constexpr size_t kGuardBytes =
    1024 * 1024;                         // inaccessible on both sides of a buffer: strays of many rows are caught too
constexpr unsigned char kPoison = 0xFF;  // NaN in every float format, -1 in every integer
constexpr unsigned char kCanary = 0xA5;

inline size_t page_size() {
  static const size_t size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return size;
}

inline size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

// Memory between two inaccessible zones; what the pages hold beyond the data is a canary.
struct Buffer {
  std::string name;
  unsigned char* mapping = nullptr;
  size_t mapped = 0;  // accessible bytes
  unsigned char* data = nullptr;
  size_t bytes = 0;
  bool writable = true;

  unsigned char* first() const { return mapping + kGuardBytes; }
  unsigned char* last() const { return first() + mapped; }
  bool near(const unsigned char* address) const {
    return address >= mapping && address < mapping + 2 * kGuardBytes + mapped;
  }
  void fill_canary() {
    std::memset(first(), kCanary, static_cast<size_t>(data - first()));
    std::memset(data + bytes, kCanary, static_cast<size_t>(last() - data - bytes));
  }
  // The first damaged canary byte, or null.
  const unsigned char* damage() const {
    for (const unsigned char* p = first(); p < data; ++p)
      if (*p != kCanary) return p;
    for (const unsigned char* p = data + bytes; p < last(); ++p)
      if (*p != kCanary) return p;
    return nullptr;
  }
};

enum Layout { kEndExact, kStart, kEndAligned };

inline Buffer make_buffer(const char* name, size_t bytes, size_t alignment, Layout layout) {
  Buffer buffer;
  buffer.name = name;
  buffer.bytes = bytes;
  buffer.mapped = std::max(round_up(bytes, page_size()), page_size());
  void* mapping = mmap(nullptr, buffer.mapped + 2 * kGuardBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) throw std::runtime_error("simt: no memory for " + buffer.name);
  buffer.mapping = static_cast<unsigned char*>(mapping);
  mprotect(buffer.first(), buffer.mapped, PROT_READ | PROT_WRITE);
  buffer.data = layout == kStart ? buffer.first() : buffer.last() - round_up(bytes, alignment);
  std::memset(buffer.data, kPoison, bytes);
  buffer.fill_canary();
  return buffer;
}

inline std::string offence(const Buffer& buffer, const unsigned char* address, const char* access) {
  if (address >= buffer.data && address < buffer.data + buffer.bytes) {
    return std::string(access) + " to the read-only argument '" + buffer.name + "', byte " +
           std::to_string(address - buffer.data);
  }
  const bool before = address < buffer.data;
  const auto distance = before ? buffer.data - address : address - (buffer.data + buffer.bytes);
  return std::string(access) + " " + std::to_string(distance) + " bytes " +
         (before ? "before the start" : "past the end") + " of '" + buffer.name + "' (" + std::to_string(buffer.bytes) +
         " bytes)";
}

}  // namespace simt
