// PNG by libpng. It leaves errors by longjmp, so that what has a destructor lives outside of `decode`.
#include <png.h>

#include <csetjmp>
#include <cstring>

#include "picture.hpp"

namespace msn {
namespace {

struct Reading {
    const Bytes* file;
    std::size_t at = 0;
    Picture picture;
    Bytes raw;
    std::vector<png_bytep> rows;
    int bands = 0, depth = 0, orientation = 1;
    bool too_large = false;
    char why[128] = "";
};

extern "C" {
static void take(png_structp png, png_bytep to, size_t size) {
    Reading& reading = *static_cast<Reading*>(png_get_io_ptr(png));
    if (size > reading.file->size() - reading.at) png_error(png, "it ends too early");
    std::memcpy(to, reading.file->data() + reading.at, size);
    reading.at += size;
}
static void fail(png_structp png, png_const_charp why) {
    Reading& reading = *static_cast<Reading*>(png_get_error_ptr(png));
    std::strncpy(reading.why, why, sizeof reading.why - 1);
    png_longjmp(png, 1);
}
static void ignore(png_structp, png_const_charp) {}
}

bool decode(png_structp png, png_infop info, Reading& reading) {
    if (setjmp(png_jmpbuf(png))) return false;
    png_set_read_fn(png, &reading, take);
    png_read_info(png, info);
    const png_uint_32 width = png_get_image_width(png, info), height = png_get_image_height(png, info);
    reading.picture.width = static_cast<int>(width);
    reading.picture.height = static_cast<int>(height);
    reading.depth = png_get_bit_depth(png, info);
    if (reading.depth > 8 || width > 1u << 30 || height > 1u << 30 || std::uint64_t(width) * height > 178956970u) {
        reading.too_large = true;
        return false;
    }
    png_set_expand(png);  // palettes to colours, 1 to 4 bits to 8, a transparent colour to alpha
    png_set_interlace_handling(png);
    png_read_update_info(png, info);
    reading.bands = png_get_channels(png, info);
    reading.raw.resize(png_get_rowbytes(png, info) * height);
    reading.rows.resize(height);
    for (png_uint_32 row = 0; row < height; ++row) reading.rows[row] = reading.raw.data() + png_get_rowbytes(png, info) * row;
    png_read_image(png, reading.rows.data());
    png_read_end(png, info);
#ifdef PNG_eXIf_SUPPORTED
    png_bytep exif = nullptr;
    png_uint_32 exif_size = 0;
    if (png_get_eXIf_1(png, info, &exif_size, &exif) != 0) reading.orientation = exif_orientation(exif, exif_size);
#endif
    return true;
}

}  // namespace

Picture read_png(const Bytes& file, const std::string& path) {
    Reading reading;
    reading.file = &file;
    png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &reading, fail, ignore);
    png_infop info = png != nullptr ? png_create_info_struct(png) : nullptr;
    const bool whole = info != nullptr && decode(png, info, reading);
    png_destroy_read_struct(&png, &info, nullptr);
    if (reading.too_large && reading.depth > 8)
        throw Error(2, path + " has " + std::to_string(reading.depth) + " bits per channel; here 8 are read. `msn-deploy infer` reads it.");
    check_size(reading.picture.width, reading.picture.height, path);
    if (!whole) damaged(path, reading.why);
    const int colours = reading.bands >= 3 ? 3 : 1;
    reading.picture.channels = colours;
    const std::size_t pixels = reading.raw.size() / std::size_t(reading.bands);
    Bytes alpha(reading.bands > colours ? pixels : 0);
    reading.picture.pixels.resize(pixels * std::size_t(colours));
    for (std::size_t at = 0; at < pixels; ++at) {
        const std::uint8_t* pixel = reading.raw.data() + at * std::size_t(reading.bands);
        std::memcpy(reading.picture.pixels.data() + at * std::size_t(colours), pixel, std::size_t(colours));
        if (!alpha.empty()) alpha[at] = pixel[colours];
    }
    return upright(alpha.empty() ? reading.picture : on_white(reading.picture, alpha), reading.orientation);
}

}  // namespace msn
