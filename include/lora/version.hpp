// SPDX-License-Identifier: MIT
// The version of lora.hpp: CMake, the package files and the tests read it here.
#pragma once

#define LORA_VERSION_MAJOR 0
#define LORA_VERSION_MINOR 1
#define LORA_VERSION_PATCH 0
