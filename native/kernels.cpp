// Everything that depends on the instruction set, compiled once for each: -DELMAN_ISA says which.
#include "carry.hpp"
#include "draws.hpp"
#include "loop.hpp"
#include "matrices.hpp"
#include "peak.hpp"

namespace elman {
namespace ELMAN_ISA {

#define ELMAN_TEXT_OF(x) #x
#define ELMAN_TEXT(x) ELMAN_TEXT_OF(x)

#if defined(__AMX_BF16__)
// Products of floats are all that differs (amx.hpp).
void in_bfloat16(Kernels& kernels);
void in_bfloat16(Kernels& kernels) { kernels.run32 = run<float>, kernels.prepare32 = prepare<float>, kernels.multiply32 = multiply<float>; }
#else
extern const Kernels kernels;
const Kernels kernels = {ELMAN_TEXT(ELMAN_ISA), PANEL<float>, PANEL<double>, run<float>, run<double>,
                         prepare<float>, prepare<double>, workspace_bytes,
                         multiply<float>, multiply<double>, multiply_bytes<float>, multiply_bytes<double>,
                         drawn<float, uniform_step>, drawn<double, uniform_step>, drawn<float, normal_step>, drawn<double, normal_step>,
                         dropped<float>, dropped<double>,
                         carry<float>, carry<double>, carry_bytes<float>, carry_bytes<double>,
                         multiply_adds<float>, multiply_adds<double>};
#endif

}  // namespace ELMAN_ISA
}  // namespace elman
