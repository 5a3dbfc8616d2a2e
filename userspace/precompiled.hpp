// What most files include, parsed once for all of them: holdfast_precompile() in CMakeLists.txt. No
// file includes it, and each still includes what it uses.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <expected>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <fmt/format.h>
