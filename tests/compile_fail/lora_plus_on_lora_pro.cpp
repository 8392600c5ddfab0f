// expect: LoRA\+ needs an update rule of one matrix; an optimizer of the pair \(LoRA-Pro\) balances A and B
// SPDX-License-Identifier: MIT
#include <lora/optim/lora_pro.hpp>
#include <lora/optim/per_factor.hpp>

#ifdef MUST_NOT_COMPILE
using Rule = lora::LoraPro;
#else
using Rule = lora::AdamW;
#endif

lora::LoraPlus<Rule> make() { return {}; }
