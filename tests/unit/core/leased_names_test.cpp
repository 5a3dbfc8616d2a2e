// Names of leases: found while they are there, under names that come and go, also by another
// thread.
#include "userspace/verifier/leased_names.hpp"

#include <atomic>
#include <random>
#include <string>
#include <thread>
#include <unordered_map>

#include <gtest/gtest.h>

namespace holdfast {
namespace {

constexpr uint32_t slots = 64;

std::string resource(uint32_t i) {
  return "web@10.0.0." + std::to_string(i) + ":443";
}

TEST(LeasedNames, IsAMapFromNamesToSlots) {
  LeasedNames names(slots);
  std::unordered_map<uint32_t, uint32_t> model;  // slot to resource
  std::mt19937 random(1);
  for (int step = 0; step < 20'000; ++step) {
    const auto slot = static_cast<uint32_t>(random() % slots);
    if (random() % 3 == 0) {
      names.remove(slot);
      model.erase(slot);
    } else {
      // Each resource has one slot at a time, as in the daemon.
      const auto which = static_cast<uint32_t>(random() % 200 * slots + slot);
      names.put(slot, names.hash("acme/shop/prod", resource(which)));
      model[slot] = which;
    }
    if (step % 50 != 0) continue;
    for (uint32_t s = 0; s < slots; ++s) {
      if (!model.contains(s)) continue;
      EXPECT_TRUE(names.find(names.hash("acme/shop/prod", resource(model[s])),
                             [&](uint32_t found) { return found == s; }));
      EXPECT_FALSE(names.find(names.hash("acme/shop/test", resource(model[s])),
                              [](uint32_t) { return true; }));
    }
  }
}

TEST(LeasedNames, AnotherThreadFindsWhatStays) {
  LeasedNames names(slots);
  // Every other slot keeps its name; the others come and go between them.
  for (uint32_t s = 0; s < slots; s += 2) names.put(s, names.hash("t", resource(s)));
  std::atomic<bool> stop = false;
  std::atomic<uint64_t> looked = 0;
  std::thread reader([&] {
    while (!stop)
      for (uint32_t s = 0; s < slots; s += 2, ++looked)
        if (!names.find(names.hash("t", resource(s)), [&](uint32_t found) { return found == s; }))
          ADD_FAILURE() << s;
  });
  std::mt19937 random(2);
  for (int step = 0; step < 300'000 || looked < 1000; ++step) {
    const auto s = static_cast<uint32_t>(random() % slots | 1);
    if (random() % 2 == 0)
      names.remove(s);
    else
      names.put(s, names.hash("t", resource(static_cast<uint32_t>(1000 + random() % 5000))));
  }
  stop = true;
  reader.join();
}

}  // namespace
}  // namespace holdfast
