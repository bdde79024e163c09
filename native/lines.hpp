// Memory that begins at a cache line.
#pragma once

#include <cstdint>
#include <memory>

#include "program.hpp"

namespace elman {

class Lines {
public:
    explicit Lines(int64_t bytes = 0) : bytes_(bytes), all_(new char[size_t(bytes + LINE)]) {
        at_ = all_.get() + (LINE - int64_t(reinterpret_cast<uintptr_t>(all_.get())) % LINE) % LINE;
    }
    char* at() const { return at_; }
    int64_t bytes() const { return bytes_; }

private:
    int64_t bytes_;
    std::unique_ptr<char[]> all_;
    char* at_;
};

}  // namespace elman
