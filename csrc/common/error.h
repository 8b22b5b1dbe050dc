// Errors of the torch-free side. The bindings turn them into Python exceptions.
#pragma once

#include <stdexcept>
#include <string>

namespace xfer {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace xfer
