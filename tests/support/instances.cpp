// SPDX-License-Identifier: MIT
#define LORA_TEST_INSTANCE template
#include "support/instances.hpp"
