from elman.dynamics.flow import jacobian, trajectory
