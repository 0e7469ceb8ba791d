// What msn-deploy knows of a network, as it wrote it into models/NAME.json of this project.
#pragma once

#include <string>
#include <vector>

#include "common.hpp"

namespace msn {

// How an image gets to the network's input: as docs/guides/preparation.md of msn-deploy says it.
struct Prepare {
    int height = 0, width = 0;
    int channels = 0;  // of the network
    int read = 0;  // of the image: 1 is the luminance, in each channel of the network
    std::string fit;  // resize, pad, letterbox, crop
    int short_side = 0;
    int fill = 0;
    bool corner = false;  // of a canvas: the image is in the upper left corner of it
    std::string interpolation;  // bilinear, bicubic, nearest
    bool bgr = false;
    bool channels_last = false;
    std::vector<float> scale, offset;  // value * scale + offset, per channel of the network
};

// How the outputs of a detector are read: see docs/guides/tasks.md of msn-deploy. Names of outputs are empty where there are none.
struct Boxes {
    std::string decode;  // yolov5, yolov8, fcos, pair, rows, rows_with_image, lists
    bool of_all = false;  // the outputs have no row for each image
    std::string output, boxes, scores, classes, count;
    double score = 0, show = 0;
    std::size_t most = 0;
    bool suppresses = false;
    double overlap = 1;
    std::string form, units, background, ending;
    bool best_alone = false;
    double stride = 0;
};

struct Settings {
    std::string path;
    std::string onnx, onnx_digest;  // the file that engines are built from
    std::string input;
    Type type = Type::float32;  // of the input
    Prepare prepare;
    std::string task;  // classification, detection, segmentation
    std::vector<std::string> classes;
    std::string output, ending, layout;  // of a classifier, and of masks; layout is nchw, nhwc or empty
    double threshold = 0.5;
    Boxes boxes;

    std::string label(std::int64_t index) const {
        const auto at = static_cast<std::size_t>(index);
        return index >= 0 && at < classes.size() ? classes[at] : std::to_string(index);
    }
};

// Throws Error(2) for a file that is not such, or says something impossible.
Settings read_settings(const std::string& path);

}  // namespace msn
