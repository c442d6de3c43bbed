// How an operation of the backing store ended. Expected failures are values: what happened, and words for people.
#pragma once

#include <cstdint>
#include <string>

namespace extmem::store {

enum class Code : uint8_t {
  ok,
  no_space,     // the limit, or the device, is reached; nothing that was committed is lost
  io_error,     // the device failed: this process writes to the store no more
  damaged,      // what is there is not what was written
  not_a_store,  // something else lies there
  bad_version,
  bad_key,
  in_use,
};

struct Verdict {
  Code code = Code::ok;
  std::string why;

  bool ok() const { return code == Code::ok; }
};

}  // namespace extmem::store
