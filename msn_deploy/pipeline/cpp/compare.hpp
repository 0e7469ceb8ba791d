// Are two answers the same, or as alike as an engine and its network are?
#pragma once

#include <string>

#include "common.hpp"

namespace msn {

// Returns where two values differ, "" where they do not; numbers may, by `share` of themselves.
std::string difference(const Json& wanted, const Json& found, double share);

// Whether an engine's answer is that of the network that it was built from, as far as rounding lets it: scores within
// `slack`, boxes that overlap by 0.9, shares of a mask within `slack`. Returns what disagrees, "" where nothing does.
std::string disagreement(const Json& wanted, const Json& found, double slack, double show);

}  // namespace msn
