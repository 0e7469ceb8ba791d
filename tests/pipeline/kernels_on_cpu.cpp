// kernels-on-cpu MODEL.json CHECK.json: do the kernels of prepare.cu make the inputs that were recorded? See cuda_shim.h.
#include <iostream>

#include "check.hpp"
#include "prepare_gpu.hpp"

int main(int, char** words) {
    const msn::Settings settings = msn::read_settings(words[1]);
    const msn::Prepare& to = settings.prepare;
    msn::GpuPreparation preparation;  // one for all images: its memory grows and is used again
    std::size_t same = 0;
    for (const msn::Recorded& one : msn::read_recorded(words[2])) {
        const msn::Picture picture = msn::open_picture(one.image);
        msn::Bytes input(std::size_t(to.channels) * std::size_t(to.height) * std::size_t(to.width) * msn::size_of(settings.type));
        preparation.queue(picture, msn::placed(picture, to, one.image), settings, input.data(), nullptr);
        if (msn::digest_of(input) == one.input) ++same;
        else std::cerr << one.image << ": another input\n";
    }
    std::cout << same << "\n";
}
