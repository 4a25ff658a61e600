"""Transport in time on grids: geodesics, their tangents, and fields without divergence."""
