// Journal: the place in the path where what happened is put on record, before the reply.
//
// This one writes structured log lines and is neither durable nor hash-linked: the chained
// write-ahead log takes its place behind the same interface. Until then what survives a crash are
// the pinned maps, and nothing else is claimed.
#pragma once

#include <initializer_list>
#include <string_view>

#include "userspace/base/log.hpp"

namespace holdfast {

class Journal {
 public:
  // An action that changed, or was to change, something: "lease.grant", "lease.forced_teardown",
  // ...
  void record(std::string_view action, std::initializer_list<log::Field> fields) {
    log::info(action, fields);
  }
};

}  // namespace holdfast
