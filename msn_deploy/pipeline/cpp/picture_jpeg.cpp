// JPEG by libjpeg (libjpeg-turbo). It leaves errors by longjmp, so that what has a destructor lives outside of `decode`.
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <jpeglib.h>
#include <jerror.h>

#include "picture.hpp"

namespace msn {
namespace {

struct Reading {
    jpeg_error_mgr errors;
    std::jmp_buf back;
    Picture picture;
    int orientation = 1;
    bool refused = false;
    char why[JMSG_LENGTH_MAX] = "";
};

extern "C" {
static void fail(j_common_ptr about) {
    Reading& reading = *static_cast<Reading*>(about->client_data);
    about->err->format_message(about, reading.why);
    std::longjmp(reading.back, 1);
}
static void warn(j_common_ptr about, int level) {  // a file that is cut off is a warning to libjpeg
    if (level < 0 && about->err->msg_code == JWRN_JPEG_EOF) fail(about);
}
}

bool decode(jpeg_decompress_struct& jpeg, const Bytes& file, Reading& reading) {
    if (setjmp(reading.back)) return false;
    jpeg_mem_src(&jpeg, file.data(), file.size());
    jpeg_save_markers(&jpeg, JPEG_APP0 + 1, 0xffff);
    jpeg_read_header(&jpeg, TRUE);
    const bool grey = jpeg.jpeg_color_space == JCS_GRAYSCALE;
    const std::uint64_t pixels = std::uint64_t(jpeg.image_width) * jpeg.image_height;
    reading.picture.width = static_cast<int>(jpeg.image_width);
    reading.picture.height = static_cast<int>(jpeg.image_height);
    reading.refused = jpeg.num_components == 4;
    if (reading.refused || pixels > 178956970u) return false;
    for (jpeg_saved_marker_ptr marker = jpeg.marker_list; marker != nullptr; marker = marker->next)
        if (marker->data_length > 6 && std::memcmp(marker->data, "Exif\0\0", 6) == 0) {
            reading.orientation = exif_orientation(marker->data + 6, marker->data_length - 6);
            break;
        }
    jpeg.out_color_space = grey ? JCS_GRAYSCALE : JCS_RGB;
    jpeg_start_decompress(&jpeg);
    reading.picture.channels = grey ? 1 : 3;
    const std::size_t stride = std::size_t(jpeg.output_width) * std::size_t(reading.picture.channels);
    reading.picture.pixels.resize(stride * jpeg.output_height);
    while (jpeg.output_scanline < jpeg.output_height) {
        JSAMPROW row = reading.picture.pixels.data() + stride * jpeg.output_scanline;
        jpeg_read_scanlines(&jpeg, &row, 1);
    }
    jpeg_finish_decompress(&jpeg);
    return true;
}

}  // namespace

Picture read_jpeg(const Bytes& file, const std::string& path) {
    Reading reading;
    jpeg_decompress_struct jpeg;
    std::memset(&jpeg, 0, sizeof jpeg);
    jpeg.err = jpeg_std_error(&reading.errors);
    reading.errors.error_exit = fail;
    reading.errors.emit_message = warn;
    jpeg.client_data = &reading;
    jpeg_create_decompress(&jpeg);
    jpeg.client_data = &reading;
    const bool whole = decode(jpeg, file, reading);
    jpeg_destroy_decompress(&jpeg);
    if (reading.refused) throw Error(2, path + " has four colours (CMYK); save it as RGB.");
    if (!whole && reading.why[0] == '\0') check_size(reading.picture.width, reading.picture.height, path);
    if (!whole) damaged(path, reading.why);
    check_size(reading.picture.width, reading.picture.height, path);
    return upright(reading.picture, reading.orientation);
}

}  // namespace msn
