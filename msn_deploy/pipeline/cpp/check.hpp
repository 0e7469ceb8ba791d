// What Python made of a few images when the bundle was packed: inputs, outputs and answers to compare with.
#pragma once

#include <string>
#include <vector>

#include "common.hpp"
#include "settings.hpp"

namespace msn {

struct Recorded {
    std::string image;  // a path
    std::string input;  // SHA-256 of the network's input for it
    Arrays outputs;
    Json answer;
};

// Reads check/NAME.json. Throws Error(2) for a file that is not such, or names one outside of its folder.
std::vector<Recorded> read_recorded(const std::string& path);

}  // namespace msn
