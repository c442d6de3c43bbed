// Which appliances hold the copies of a column: none twice, and none that share what copies must not share.
#pragma once

#include <cstddef>
#include <vector>

#include "extent/file_record.h"

namespace extmem::extent {

using Column = std::vector<fabric::Appliance*>;

/// As many columns as these appliances give, in their order as far as that goes, at most kMaxLayoutMembers members in
/// all. Copies are apart as `across` says; widest: as far as can be, racks before hosts before appliances. None: there
/// are not enough.
std::vector<Column> form_columns(const std::vector<fabric::Appliance*>& appliances, size_t copies, Across across);

}  // namespace extmem::extent
