// From a network's outputs for one image to an answer: the JSON that `msn-deploy infer --json` writes.
#pragma once

#include "common.hpp"
#include "prepare.hpp"
#include "settings.hpp"

namespace msn {

// Returns the answer. outputs: in rows, the first is of this image; where: how the image was placed.
// Throws Error(1) for numbers that are not finite, Error(2) for arrays that are not of the task.
Json answer(const Arrays& outputs, const Placed& where, const Settings& settings);

// The tasks, by themselves.
Json classes_of(const Arrays& outputs, const Settings& settings);
Json boxes_of(const Arrays& outputs, const Placed& where, const Settings& settings);
Json mask_of(const Arrays& outputs, const Placed& where, const Settings& settings);

// Throws Error(1) unless all floats of an array are finite.
void require_finite(const Array& array, const Settings& settings);

}  // namespace msn
