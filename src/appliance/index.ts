/** The appliance as the rest of the program starts it: with the native region server. */
import { native } from '../binding/index.js';
import { startAppliance, type Appliance, type ApplianceOptions } from './appliance.js';

export type { Appliance } from './appliance.js';
export type { StoreSettings } from './keeping.js';

export function createAppliance(options: Omit<ApplianceOptions, 'startServer'>): Promise<Appliance> {
  return startAppliance({ ...options, startServer: (serverOptions) => new native.RegionServer(serverOptions) });
}
